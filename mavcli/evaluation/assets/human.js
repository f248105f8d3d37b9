/* Two videos side by side, one question after another. An answer is a vote of its own: it goes into this browser's storage
   first and then to the server, again and again until the server says that it has this very vote on its disk. Only what the
   server has said so of is called saved. Without a server the votes stay here until they are downloaded. The page does not
   know which system a clip is from. */
"use strict";
(() => {
  const study = window.MAV_STUDY;
  const $ = (id) => document.getElementById(id);
  const videos = { left: $("left"), right: $("right") };
  const AGAIN_MS = 1500, REFUSED_AGAIN_MS = 10000, PATIENCE_MS = 20000;

  // -- what this browser keeps -------------------------------------------------------------------------------------

  const memory = {
    broken: false,
    key: (name) => `mav-human/${study.id}/${name}`,
    get(name) {
      try { return JSON.parse(localStorage.getItem(this.key(name))); } catch { return null; }
    },
    set(name, value) {
      try {
        if (value === null) localStorage.removeItem(this.key(name));
        else localStorage.setItem(this.key(name), JSON.stringify(value));
      } catch { this.broken = true; }
    },
    names(start) { // what is kept under names that begin so, without that beginning
      const whole = this.key(start);
      try {
        return Object.keys(localStorage).filter((name) => name.startsWith(whole)).map((name) => name.slice(whole.length));
      } catch { this.broken = true; return []; }
    },
  };
  // A vote has a place of its own, so that two windows of one browser never write over each other's.
  const kept = (vote) => `vote/${vote.rater}/${vote.id}`;

  const unguessable = (bytes) =>
    [...crypto.getRandomValues(new Uint8Array(bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

  let rater = null;         // { token, name }
  let plan = [];
  let at = 0;               // place in the plan
  let asked = 0;            // which question of the pair on show
  let votes = new Map();    // item/question -> the vote that counts
  let saved = new Map();    // id -> vote that the server has said it has
  let unsaved = new Map();  // id -> vote that it has not, of whoever votes in this browser; without a server all of them
  let shownAt = 0;
  let ready = false;

  const placeOf = (vote) => `${vote.item}/${vote.question}`;
  const voteOn = (item, question) => votes.get(`${item.id}/${question.id}`);
  const judged = (item) => study.questions.every((question) => voteOn(item, question));
  const judgedCount = () => study.items.filter(judged).length;
  const allSaved = () =>
    study.items.every((item) => study.questions.every((question) => saved.has(voteOn(item, question)?.id)));

  // As the tally has it: the highest revision, then the latest, then the greatest id.
  const later = (a, b) => a.revision - b.revision || (a.at < b.at ? -1 : a.at > b.at ? 1 : a.id < b.id ? -1 : 1);
  function count(vote) {
    const known = votes.get(placeOf(vote));
    if (!known || later(vote, known) > 0) votes.set(placeOf(vote), vote);
  }
  function recount() {
    votes = new Map();
    for (const vote of [...saved.values(), ...unsaved.values()]) if (vote.rater === rater.token) count(vote);
  }

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

  function planFor(token) {
    const random = generator(`${study.id}/${token}`);
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

  // -- the server ----------------------------------------------------------------------------------------------------

  function say(text, kind = "") {
    $("state").textContent = text;
    $("state").className = kind;
  }
  function notice(text) {
    $("notice").hidden = !text;
    $("notice").firstElementChild.textContent = text;
  }
  const answers = (n) => `${n} answer${n === 1 ? "" : "s"}`;
  const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  class Refused extends Error { // the server understood and said no
    constructor(status, told) {
      super(told.error);
      this.status = status;
      this.why = told.why;
    }
  }

  /* What the server answers, an object of this study. Throws Refused, or another Error for whatever else answers or not. */
  async function ask(path, body) {
    const reply = await fetch(path, {
      ...(body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }),
      cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS),
    });
    let told;
    try { told = await reply.json(); } catch { throw new Error("what answers is not this study's server"); }
    if (!reply.ok) {
      if (reply.status === 409 && told.why === "study") leaveForOther();
      if (typeof told.error === "string") throw new Refused(reply.status, told);
    }
    if (!reply.ok || told?.study !== study.id) throw new Error("what answers is not this study's server");
    return told;
  }

  let leaving = false;
  function leaveForOther() { // nothing of this study can be saved here any more
    if (leaving) return;
    leaving = true;
    const left = unsaved.size;
    const told = "The study at this address is another one now. " + (left
      ? `${answers(left)} to the one before ${left === 1 ? "is" : "are"} not saved: this browser keeps ` +
        `${left === 1 ? "it" : "them"} and sends ${left === 1 ? "it" : "them"} when that study is served here again.`
      : "All your answers to the one before are saved.");
    try { sessionStorage.setItem("mav-human/notice", told); } catch { /* then the page starts without it */ }
    location.reload();
  }

  /* `work`, again and again until the server has carried it out; what it says meanwhile is shown. */
  async function untilDone(what, work) {
    for (;;) {
      try { return await work(); } catch (error) {
        if (leaving) return new Promise(() => {});
        if (error instanceof Refused && (error.why || error.status < 500)) throw error;
        say(`${what}: ${said(error)}, trying again`, "waiting");
        await wait(AGAIN_MS);
      }
    }
  }
  const said = (error) =>
    error instanceof Refused || !(error instanceof TypeError || error.name === "TimeoutError")
      ? error.message : "the server does not answer";

  async function enrol(name) {
    const tidy = name.normalize("NFKC").trim().split(/\s+/).join(" ");
    if (!study.server) return { token: unguessable(16), name: tidy };
    const told = await untilDone("not begun yet", () => ask("api/raters", { study: study.id, name: tidy }));
    return { token: told.rater, name: told.name };
  }

  const record = () =>
    ask(`api/votes?study=${encodeURIComponent(study.id)}&rater=${encodeURIComponent(rater.token)}`);
  /* Whether this address still serves this study; if not, the page leaves. */
  const checkStudy = () => { if (study.server && rater && !leaving) record().catch(() => {}); };

  /* What is on the server's disk of this rater. */
  async function fetchVotes() {
    const told = await untilDone("your answers are not read yet", record);
    saved = new Map(told.votes.map((vote) => [vote.id, vote]));
  }

  /* The folder of votes is a new one: whoever had `before` gets another token, under which the unsaved votes go. */
  async function beginAnew(before) {
    const fresh = await enrol(before.name);
    const mine = rater?.token === before.token;
    replaceRater(before, fresh, mine);
    for (const vote of [...unsaved.values()].filter((one) => one.rater === before.token)) {
      memory.set(kept(vote), null);
      unsaved.set(vote.id, { ...vote, rater: fresh.token });
      memory.set(kept(unsaved.get(vote.id)), unsaved.get(vote.id));
    }
    if (!mine) return;
    rater = fresh;
    saved = new Map();
    recount();
    notice("This server's folder of votes is a new one: what you judged before is not in it.");
  }

  let sending = null;
  const send = () => (sending ??= sendAll().finally(() => { sending = null; }));
  let again = 0;

  async function sendAll() {
    clearTimeout(again);
    let trouble = null, pause = AGAIN_MS;
    if (unsaved.size) say("saving…");
    const tried = new Set();
    for (let vote; !leaving && (vote = [...unsaved.values()].find((one) => !tried.has(one.id)));) {
      tried.add(vote.id);
      try {
        const told = await ask("api/votes", vote);
        for (const name of ["rater", "id", "item", "question", "revision", "answer"])
          if (told.saved !== true || told[name] !== vote[name]) throw new Error("the server answers something else");
        saved.set(vote.id, vote);
        unsaved.delete(vote.id);
        memory.set(kept(vote), null);
      } catch (error) {
        if (leaving) return;
        if (error instanceof Refused && error.why === "rater") {
          await beginAnew({ token: vote.rater, name: vote.name });
          tried.clear();
          continue;
        }
        trouble = said(error);
        if (error instanceof Refused && error.status < 500) { pause = REFUSED_AGAIN_MS; continue; } // this one alone
        break;
      }
    }
    if (leaving) return;
    if (unsaved.size) {
      say(`${answers(unsaved.size)} not saved yet: ${trouble ?? "more came"}, trying again`, "waiting");
      again = setTimeout(send, trouble ? pause : 0);
    } else say("saved", "saved");
    if (!$("done").hidden) thank();
  }

  function cast(choice) {
    const { item, left, right } = plan[at];
    const question = study.questions[asked];
    const before = voteOn(item, question);
    if (before?.answer === choice) return; // looked at again, and still of that mind
    const vote = {
      vote: 2, study: study.id, rater: rater.token, name: rater.name, id: unguessable(16), item: item.id,
      question: question.id, revision: before ? before.revision + 1 : 0, answer: choice, left: left.id, right: right.id,
      seconds: Math.round((performance.now() - shownAt) / 100) / 10, at: new Date().toISOString(),
    };
    unsaved.set(vote.id, vote);
    memory.set(kept(vote), vote);
    count(vote);
    if (study.server) send();
    else sayKept();
  }

  const sayKept = () =>
    memory.broken ? say("this browser keeps nothing: download before you leave", "waiting")
      : say("kept in this browser alone", "waiting");

  function download() {
    const lines = [...votes.values()].map((vote) => JSON.stringify(vote) + "\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = `votes-${rater.name.replace(/[^\p{L}\p{N}]+/gu, "-")}-${rater.token.slice(0, 6)}.jsonl`;
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
    trouble("");
    shownAt = performance.now();
    restart();
    showQuestion();
  }
  for (const video of both) {
    video.addEventListener("canplaythrough", loaded);
    video.addEventListener("canplay", loaded);
    // The shorter one waits on its last frame, so both begin each round together.
    video.addEventListener("ended", () => { if (both.every((one) => one.ended)) restart(); });
    video.addEventListener("error", () => { // a study that was changed has other clips
      if (!ready && !$("pair").hidden) trouble("a video of this pair cannot be played here");
      checkStudy();
      setTimeout(() => { if (video.error && !$("pair").hidden) video.load(); }, AGAIN_MS);
    });
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

  function page(name) {
    for (const id of ["welcome", "pair", "done"]) $(id).hidden = id !== name;
    $("keys").hidden = name !== "pair";
    for (const id of ["download", "download2"]) $(id).hidden = Boolean(study.server) || !rater || !votes.size;
    const done = judgedCount();
    $("count").textContent = rater ? `${done} of ${study.items.length} judged` : "";
    $("rater").textContent = rater?.name ?? "";
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

  /* A pair from its first question without an answer, or from its first one. */
  function show(index) {
    at = index;
    page("pair");
    trouble("");
    ready = false;
    paused = false;
    const { item, left, right } = plan[at];
    asked = judged(item) ? 0 : study.questions.findIndex((question) => !voteOn(item, question));
    videos.left.src = left.src;
    videos.right.src = right.src;
    for (const video of both) video.load();
    document.body.dataset.item = item.id;
    showQuestion();
    for (const { item: next } of plan.slice(at + 1).filter((step) => !judged(step.item)).slice(0, 1))
      for (const clip of next.clips) preload(clip.src);
  }

  function preload(src) {
    if (document.querySelector(`link[href="${src}"]`)) return;
    const link = document.createElement("link");
    Object.assign(link, { rel: "prefetch", href: src });
    document.head.append(link);
  }

  function showQuestion() {
    const question = study.questions[asked];
    const { item, left, right } = plan[at];
    $("question").textContent = question.text;
    $("prompt").classList.toggle("told", question.prompt);
    $("prompt").textContent = question.prompt ? `“${item.prompt}”` : "Judge the picture alone.";
    $("steps").replaceChildren(...(study.questions.length > 1 ? study.questions : []).map((one, index) => {
      const dot = document.createElement("li");
      dot.className = index === asked ? "now" : voteOn(item, one) ? "answered" : "";
      return dot;
    }));
    const before = voteOn(item, question)?.answer;
    const clips = { left: left.id, right: right.id, tie: "tie" };
    for (const button of $("answers").children) {
      button.disabled = !ready;
      button.classList.toggle("chosen", before === clips[button.dataset.answer]);
    }
    document.body.dataset.question = ready ? question.id : "";
  }

  let busy = false;
  async function answer(side) {
    if (!ready || busy || $("pair").hidden || (side === "tie" && !study.tie)) return;
    busy = true;
    for (const button of $("answers").children) button.classList.toggle("chosen", button.dataset.answer === side);
    if (side !== "tie") videos[side].parentElement.classList.add("chosen");
    cast(side === "tie" ? "tie" : plan[at][side].id);
    const last = asked === study.questions.length - 1;
    // Wait for the disk before the next pair, but not for a server that is gone: the votes are kept here and sent again.
    await Promise.all([wait(180), last && sending && Promise.race([sending, wait(1000)])]);
    for (const video of both) video.parentElement.classList.remove("chosen");
    busy = false;
    if (last) goOn();
    else { asked += 1; showQuestion(); }
  }

  function back() {
    if (busy || !rater || !$("welcome").hidden) return;
    if (!$("done").hidden) show(plan.length - 1);
    else if (asked > 0) { asked -= 1; showQuestion(); } // first the answers of this pair
    else if (at > 0) show(at - 1);
  }

  function goOn() {
    let next = plan.findIndex((step, i) => i > at && !judged(step.item));
    if (next < 0) next = plan.findIndex((step) => !judged(step.item));
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
    const open = study.items.length - judgedCount();
    const all = open ? `${study.items.length - open} of ${study.items.length} pairs are judged` : `All ${study.items.length} pairs are judged`;
    const rest = open ? ` Reload the page to see the ${open} that you passed over.` : "";
    $("thanks").textContent = (!study.server
      ? `${all}. Download the votes and send the file back; until then they are in this browser alone.`
      : unsaved.size ? `${all}, but ${answers(unsaved.size)} not saved yet: leave this page open.`
      : open || allSaved() ? `${all} and saved. Backspace goes back to the last one.`
      : `${all}, but the server does not have all of it: reload the page.`) + rest;
  }

  // -- who votes -------------------------------------------------------------------------------------------------------

  const known = () => memory.get("raters") ?? [];
  function remember(one) {
    memory.set("raters", [...known().filter((other) => other.token !== one.token), one]);
    memory.set("rater", one);
  }
  function replaceRater(before, fresh, current) {
    memory.set("raters", [...known().filter((other) => other.token !== before.token), fresh]);
    if (current) memory.set("rater", fresh);
  }

  let entering = false;
  async function enter(who) {
    if (entering) return;
    entering = true;
    try {
      rater = typeof who === "string" ? await enrol(who) : who;
      remember(rater);
      for (const name of memory.names("vote/")) { // of every window and every rater of this browser
        const vote = memory.get(`vote/${name}`);
        if (vote && !unsaved.has(vote.id)) unsaved.set(vote.id, vote);
      }
      saved = new Map();
      if (study.server) {
        try { await fetchVotes(); } catch (error) {
          if (!(error instanceof Refused) || error.why !== "rater") throw error;
          await beginAnew(rater);
        }
        for (const vote of saved.values()) if (unsaved.delete(vote.id)) memory.set(kept(vote), null);
      }
      recount();
    } catch (error) {
      rater = null;
      welcome();
      say(said(error), "waiting");
      return;
    } finally { entering = false; }
    plan = planFor(rater.token);
    if (study.server && unsaved.size) await Promise.race([send(), wait(1000)]);
    else if (study.server) say(votes.size ? "saved" : "", "saved");
    else if (votes.size) sayKept();
    at = -1;
    // A pair with half its answers given comes first.
    const half = plan.findIndex((step) => !judged(step.item) && study.questions.some((question) => voteOn(step.item, question)));
    if (half >= 0) show(half);
    else goOn();
  }

  function welcome() {
    $("known").replaceChildren("or go on as", ...known().map((one) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", className: "quiet", textContent: one.name });
      button.addEventListener("click", () => enter(one));
      return button;
    }));
    $("known").hidden = !known().length;
    page("welcome");
  }

  function leave() {
    memory.set("rater", null);
    rater = null;
    votes = new Map();
    saved = new Map();
    if (!unsaved.size || !study.server) say("");
    $("name").value = "";
    welcome();
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
  if (!study.tie) {
    document.querySelector("[data-answer=tie]").remove();
    $("tie").remove();
    $("answers").classList.add("forced");
  }
  for (const button of $("answers").children)
    button.addEventListener("click", () => { button.blur(); answer(button.dataset.answer); });
  $("start").addEventListener("submit", (event) => { event.preventDefault(); $("name").blur(); enter($("name").value); });
  for (const id of ["download", "download2"]) $(id).addEventListener("click", download);
  $("other").addEventListener("click", leave);
  $("heard").addEventListener("click", () => notice(""));
  $("skip").addEventListener("click", () => { // stays open, and comes again when the others are judged
    const next = plan.findIndex((step, i) => i > at && !judged(step.item));
    if (next >= 0) show(next);
    else finish();
  });
  window.addEventListener("online", () => study.server && unsaved.size && send());
  window.addEventListener("beforeunload", (event) => { if (memory.broken && unsaved.size) event.preventDefault(); });
  document.addEventListener("visibilitychange", () => { // what is served here may have changed meanwhile
    if (!document.hidden) checkStudy();
  });

  const dark = () => document.documentElement.dataset.theme === "dark";
  const paint = (theme) => { document.documentElement.dataset.theme = theme; };
  paint(memory.get("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  $("theme").addEventListener("click", () => { paint(dark() ? "light" : "dark"); memory.set("theme", document.documentElement.dataset.theme); });

  const many = study.questions.length > 1 ? `${study.questions.length} questions about each, one at a time` : "one question about each";
  $("intro").textContent = `You will see ${study.items.length} pairs of short videos and ${many}. Take the time to watch both; they play together and again from the start.`;
  $("rule").textContent = study.server
    ? "Each answer is saved at once, and the page says so. You may stop at any time: this browser knows where you stopped."
    : "Your answers stay in this browser, which knows where you stopped, until you download them and send the file back.";
  try {
    notice(sessionStorage.getItem("mav-human/notice") ?? "");
    sessionStorage.removeItem("mav-human/notice");
  } catch { notice(""); }
  requestAnimationFrame(keepTogether);
  const last = memory.get("rater");
  if (last?.token) enter(last);
  else welcome();
})();
