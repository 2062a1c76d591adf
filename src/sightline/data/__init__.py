"""Pictures and folders of pictures: the only place that opens a file somebody brings."""
