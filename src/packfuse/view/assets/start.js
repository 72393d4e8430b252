/* A file of its own holds the answer as JSON beside this script. */
showAnswer(
  document.getElementById("view"),
  JSON.parse(document.getElementById("answer").textContent),
);
