// Draws an answer: what is shown in words, the viewer, the cautions. Everything from outside is set as text, never as HTML.
window.sightlineAnswer = (element, answer) => {
  if (answer && answer.keep) answer = { ...element.sightlineLast, problem: answer.problem };
  else element.sightlineLast = answer;
  const part = (name) => element.querySelector(`.sightline-${name}`);
  part("problem").textContent = answer ? answer.problem : "";
  part("problem").hidden = !answer || !answer.problem;
  part("sentence").textContent = answer ? answer.sentence : "";
  part("notices").replaceChildren(...(answer ? answer.notices : []).map((text) => {
    const line = document.createElement("li");
    line.textContent = text;
    return line;
  }));
  part("notices").hidden = !answer || answer.notices.length === 0;
  const place = part("place");
  if (answer && answer.viewer) {
    place.sightlineChoice = element.sightlineChoice;
    window.sightlineViewer(place, answer.viewer);
    element.sightlineChoice = place.sightlineChoice;
  } else place.replaceChildren();
  // On a phone the answer stands far below what was tapped.
  const below = element.getBoundingClientRect().top > window.innerHeight * 0.7;
  if (answer && window.innerWidth < 700 && below) element.scrollIntoView({ block: "start" });
  part("empty").hidden = Boolean(answer && (answer.viewer || answer.problem));
};

// Saves base64 text as a file.
window.sightlineSave = (text) => {
  if (!text) return;
  const content = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/zip" }));
  link.download = "sightline.zip";
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
};
