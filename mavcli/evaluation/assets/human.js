/* Two videos side by side, one question after another. A vote goes into this browser's storage first and then to the
   server, which syncs it to the disk before it answers; what was not answered is sent again. Without a server the votes
   stay here until they are downloaded. The page does not know which system a clip is from. */
"use strict";
(() => {
  const study = window.MAV_STUDY;
  const $ = (id) => document.getElementById(id);
  const videos = { left: $("left"), right: $("right") };
  const key = (name) => `mav-human/${study.id}/${name}`;

  // -- what this browser keeps -------------------------------------------------------------------------------------

  const memory = {
    broken: false,
    get(name) {
      try { return JSON.parse(localStorage.getItem(key(name))); } catch { return null; }
    },
    set(name, value) {
      try {
        if (value === null) localStorage.removeItem(key(name));
        else localStorage.setItem(key(name), JSON.stringify(value));
      } catch { this.broken = true; }
    },
  };

  let rater = "";
  let plan = [];
  let at = 0;          // place in the plan
  let votes = {};      // item -> the vote that counts
  let unsent = [];     // votes that the server has not confirmed
  let answers = {};    // of the item on show: question -> clip or `tie`
  let shownAt = 0;
  let ready = false;

  const keepVotes = () => memory.set(`votes/${rater}`, votes);
  const keepUnsent = () => memory.set(`unsent/${rater}`, unsent.length ? unsent : null);
  const keepDraft = () =>
    memory.set(`draft/${rater}`, Object.keys(answers).length ? { item: plan[at].item.id, answers } : null);

  // -- order and sides: a pure function of the study and the rater -----------------------------------------------------

  function generator(text) {
    let h = 2166136261;
    for (const c of new TextEncoder().encode(text)) h = Math.imul(h ^ c, 16777619);
    return () => { // mulberry32
      h = (h + 0x6d2b79f5) | 0;
      let t = Math.imul(h ^ (h >>> 15), 1 | h);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  function planFor(name) {
    const random = generator(`${study.id}/${name}`);
    // The two items of a block have their systems the other way round, so one coin for both keeps the sides even.
    const swap = {};
    for (const item of study.items) if (!(item.block in swap)) swap[item.block] = random() < 0.5;
    const order = study.items.map((item) => {
      const [left, right] = swap[item.block] ? [item.clips[1], item.clips[0]] : item.clips;
      return { item, left, right };
    });
    for (let i = order.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  const tidyName = (text) => text.normalize("NFKC").trim().split(/\s+/).join(" ").toLowerCase();

  // -- saving ------------------------------------------------------------------------------------------------------

  function say(text, kind = "") {
    $("state").textContent = text;
    $("state").className = kind;
  }

  let sending = null;
  const send = () => (sending ??= sendAll().finally(() => { sending = null; }));

  async function sendAll() {
    while (unsent.length) {
      const vote = unsent[0];
      let reply;
      try {
        reply = await fetch("api/votes", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(vote),
        });
        if (reply.status >= 500) throw new Error(await reply.text());
      } catch {
        say(`${unsent.length} not saved yet: the server does not answer, trying again`, "waiting");
        setTimeout(send, 1500);
        return false;
      }
      unsent = unsent.filter((one) => one !== vote);
      keepUnsent();
      if (reply.status === 409) await fetchVotes(); // cast elsewhere under the same name: what is on the disk counts
      else if (!reply.ok) { say(`refused: ${await reply.text()}`, "waiting"); return false; }
    }
    say("saved", "saved");
    if (!$("done").hidden) thank();
    return true;
  }

  async function fetchVotes() {
    const reply = await fetch(`api/votes?rater=${encodeURIComponent(rater)}`);
    if (!reply.ok) throw new Error(await reply.text());
    const known = {};
    for (const vote of (await reply.json()).votes) known[vote.item] = vote;
    for (const vote of unsent) known[vote.item] = vote;
    votes = known;
    keepVotes();
  }

  async function cast() {
    const { item, left, right } = plan[at];
    const before = votes[item.id];
    const vote = {
      vote: 1, study: study.id, rater, item: item.id, revision: before ? before.revision + 1 : 0,
      left: left.id, right: right.id, answers,
      seconds: Math.round((performance.now() - shownAt) / 100) / 10, at: new Date().toISOString(),
    };
    votes[item.id] = vote;
    if (study.server) { unsent.push(vote); keepUnsent(); }
    keepVotes();
    answers = {};
    keepDraft();
    if (!study.server) {
      say(memory.broken ? "this browser keeps nothing: download before you leave" : "kept in this browser",
        memory.broken ? "waiting" : "saved");
      return;
    }
    // Wait for the disk, but not for a server that is gone: the vote is kept here and sent again.
    await Promise.race([send(), new Promise((resolve) => setTimeout(resolve, 1000))]);
  }

  function download() {
    const lines = Object.values(votes).map((vote) => JSON.stringify(vote) + "\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = `votes-${rater.replace(/[^\p{L}\p{N}]+/gu, "-")}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // -- two videos as one -------------------------------------------------------------------------------------------

  const both = Object.values(videos);
  const usable = () => both.every((video) => video.readyState >= 3 && !video.error);
  let paused = false;

  function playBoth() {
    for (const video of both) if (!video.ended) video.play().catch(() => {});
  }
  function restart() {
    for (const video of both) { video.currentTime = 0; video.playbackRate = 1; }
    paused = false;
    playBoth();
  }
  function toggle() {
    paused = !paused;
    if (paused) for (const video of both) video.pause();
    else if (both.every((video) => video.ended)) restart();
    else playBoth();
  }
  function loaded() {
    if (ready || !usable()) return;
    ready = true;
    shownAt = performance.now();
    restart();
    showQuestion();
  }
  for (const video of both) {
    video.addEventListener("canplaythrough", loaded);
    video.addEventListener("canplay", loaded);
    // The shorter one waits on its last frame, so both begin each round together.
    video.addEventListener("ended", () => { if (both.every((one) => one.ended)) restart(); });
    video.addEventListener("error", () => trouble("a video of this pair cannot be played here"));
    video.addEventListener("click", toggle);
  }
  function keepTogether() {
    const [a, b] = both;
    if (ready && !paused && !a.ended && !b.ended) {
      const ahead = b.currentTime - a.currentTime;
      if (Math.abs(ahead) > 0.3) b.currentTime = a.currentTime;
      b.playbackRate = Math.abs(ahead) > 0.03 ? (ahead > 0 ? 0.9 : 1.1) : 1;
    }
    const longest = a.duration > b.duration ? a : b;
    if (ready) $("loop").style.width = `${(100 * longest.currentTime) / longest.duration || 0}%`;
    requestAnimationFrame(keepTogether);
  }

  // -- what is on show -----------------------------------------------------------------------------------------------

  const question = () => study.questions.find((one) => !(one.id in answers));

  function page(name) {
    for (const id of ["welcome", "pair", "done"]) $(id).hidden = id !== name;
    $("keys").hidden = name !== "pair";
    for (const id of ["download", "download2"]) $(id).hidden = Boolean(study.server) || !Object.keys(votes).length;
    const done = Object.keys(votes).length;
    $("count").textContent = rater ? `${done} of ${study.items.length} judged` : "";
    $("rater").textContent = rater;
    $("track").classList.toggle("empty", !rater);
    $("track").setAttribute("aria-valuemax", study.items.length);
    $("track").setAttribute("aria-valuenow", done);
    $("bar").style.width = `${(100 * done) / study.items.length}%`;
    if (name === "welcome") $("name").focus();
  }

  function trouble(text) {
    $("trouble").hidden = !text;
    $("trouble").firstElementChild.textContent = text;
  }

  function show(index) {
    at = index;
    page("pair");
    trouble("");
    ready = false;
    paused = false;
    const { item, left, right } = plan[at];
    const draft = memory.get(`draft/${rater}`);
    answers = draft && draft.item === item.id ? draft.answers : {};
    videos.left.src = left.src;
    videos.right.src = right.src;
    for (const video of both) video.load();
    document.body.dataset.item = item.id;
    showQuestion();
    for (const { item: next } of plan.slice(at + 1).filter((step) => !votes[step.item.id]).slice(0, 1))
      for (const clip of next.clips) preload(clip.src);
  }

  function preload(src) {
    if (document.querySelector(`link[href="${src}"]`)) return;
    const link = document.createElement("link");
    Object.assign(link, { rel: "prefetch", href: src });
    document.head.append(link);
  }

  function showQuestion() {
    const asked = question();
    if (!asked) return;
    const { item, left, right } = plan[at];
    $("question").textContent = asked.text;
    $("prompt").classList.toggle("told", asked.prompt);
    $("prompt").textContent = asked.prompt ? `“${item.prompt}”` : "Judge the picture alone.";
    $("steps").replaceChildren(...(study.questions.length > 1 ? study.questions : []).map((one) => {
      const dot = document.createElement("li");
      dot.className = one === asked ? "now" : one.id in answers ? "answered" : "";
      return dot;
    }));
    const before = votes[item.id]?.answers[asked.id];
    const clips = { left: left.id, right: right.id, tie: "tie" };
    for (const button of $("answers").children) {
      button.disabled = !ready;
      button.classList.toggle("chosen", before === clips[button.dataset.answer]);
    }
    document.body.dataset.question = ready ? asked.id : "";
  }

  let busy = false;
  async function answer(side) {
    const asked = question();
    if (!ready || busy || !asked || $("pair").hidden) return;
    busy = true;
    const step = plan[at];
    answers[asked.id] = side === "tie" ? "tie" : step[side].id;
    keepDraft();
    for (const button of $("answers").children) button.classList.toggle("chosen", button.dataset.answer === side);
    if (side !== "tie") videos[side].parentElement.classList.add("chosen");
    const seen = new Promise((resolve) => setTimeout(resolve, 180));
    if (!question()) { await Promise.all([cast(), seen]); goOn(); }
    else { await seen; showQuestion(); }
    for (const video of both) video.parentElement.classList.remove("chosen");
    busy = false;
  }

  function back() {
    if (busy || $("welcome").hidden === false) return;
    if (Object.keys(answers).length) { // first the answers of this pair
      const given = study.questions.filter((one) => one.id in answers);
      delete answers[given[given.length - 1].id];
      keepDraft();
      showQuestion();
    } else if (!$("done").hidden) show(plan.length - 1);
    else if (at > 0) show(at - 1);
  }

  function goOn() {
    let next = plan.findIndex((step, i) => i > at && !votes[step.item.id]);
    if (next < 0) next = plan.findIndex((step) => !votes[step.item.id]);
    if (next >= 0) show(next);
    else finish();
  }

  function finish() {
    for (const video of both) { video.removeAttribute("src"); video.load(); }
    ready = false;
    document.body.dataset.item = document.body.dataset.question = "";
    page("done");
    thank();
  }

  function thank() {
    const all = `All ${study.items.length} pairs are judged`;
    $("thanks").textContent = !study.server
      ? `${all}. Download the votes and send the file back; until then they are in this browser alone.`
      : unsent.length ? `${all}, but ${unsent.length} votes are not saved yet: leave this page open.`
      : `${all} and saved. Backspace goes back to the last one.`;
  }

  async function enter(name) {
    rater = tidyName(name);
    if (!rater) return;
    memory.set("rater", rater);
    plan = planFor(rater);
    votes = memory.get(`votes/${rater}`) ?? {};
    unsent = memory.get(`unsent/${rater}`) ?? [];
    if (study.server) {
      try { await fetchVotes(); } catch { say("the server does not answer: votes are kept in this browser", "waiting"); }
      if (unsent.length) await send();
    }
    at = -1;
    // A pair with half its answers given comes first.
    const draft = memory.get(`draft/${rater}`);
    const half = draft ? plan.findIndex((step) => step.item.id === draft.item) : -1;
    if (half >= 0) show(half);
    else goOn();
  }

  function leave() {
    memory.set("rater", null);
    rater = "";
    votes = {};
    say("");
    $("name").value = "";
    page("welcome");
  }

  // -- wiring --------------------------------------------------------------------------------------------------------

  const keys = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "tie", 0: "tie", t: "tie" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.matches("input")) return;
    if (event.key in keys) answer(keys[event.key]);
    else if (event.key === " ") toggle();
    else if (event.key === "r") restart();
    else if (event.key === "Backspace") back();
    else return;
    event.preventDefault();
  });
  for (const button of $("answers").children)
    button.addEventListener("click", () => { button.blur(); answer(button.dataset.answer); });
  $("start").addEventListener("submit", (event) => { event.preventDefault(); $("name").blur(); enter($("name").value); });
  for (const id of ["download", "download2"]) $(id).addEventListener("click", download);
  $("other").addEventListener("click", leave);
  $("skip").addEventListener("click", () => { // stays open, and comes again when the others are judged
    const next = plan.findIndex((step, i) => i > at && !votes[step.item.id]);
    if (next >= 0) show(next);
    else finish();
  });
  window.addEventListener("online", () => unsent.length && send());

  const dark = () => document.documentElement.dataset.theme === "dark";
  const paint = (theme) => { document.documentElement.dataset.theme = theme; };
  paint(memory.get("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  $("theme").addEventListener("click", () => { paint(dark() ? "light" : "dark"); memory.set("theme", document.documentElement.dataset.theme); });

  const many = study.questions.length > 1 ? `${study.questions.length} questions about each, one at a time` : "one question about each";
  $("intro").textContent = `You will see ${study.items.length} pairs of short videos and ${many}. Take the time to watch both; they play together and again from the start.`;
  requestAnimationFrame(keepTogether);
  const last = memory.get("rater");
  if (last) enter(last);
  else page("welcome");
})();
