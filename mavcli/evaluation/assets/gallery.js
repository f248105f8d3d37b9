"use strict";
(() => {
  const videos = JSON.parse(document.getElementById("videos").textContent);
  const $ = (id) => document.getElementById(id);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  // A video is loaded when it comes near the window and plays while it is in it.
  const load = (player) => { if (!player.src) player.src = player.dataset.src; };
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) load(target);
  }, { rootMargin: "600px" });
  const inside = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) { target.pause(); continue; }
      load(target); // the two observers speak in no order
      if (!still) target.play().catch(() => {});
    }
  }, { threshold: 0.2 });

  const cells = videos.map((video, index) => {
    const cell = document.createElement("button");
    cell.type = "button";
    cell.className = "cell";
    const player = document.createElement("video");
    Object.assign(player, { muted: true, loop: true, playsInline: true, preload: "metadata" });
    player.dataset.src = video.src;
    if (video.width && video.height) player.style.aspectRatio = `${video.width} / ${video.height}`;
    const words = document.createElement("div");
    const title = document.createElement("b");
    title.textContent = video.prompt ?? video.name;
    const facts = document.createElement("small");
    facts.textContent = [
      video.seed === null ? null : `seed ${video.seed}` + (video.sample ? `, sample ${video.sample}` : ""),
      video.recipe,
      video.seconds === null ? null : `${video.seconds} s`,
    ].filter(Boolean).join(" · ");
    words.append(title, facts);
    cell.append(player, words);
    player.addEventListener("error", () => { // what only playing shows
      cell.classList.add("broken");
      facts.textContent = "cannot be played here";
    });
    cell.addEventListener("click", () => open(video));
    cell.addEventListener("mouseenter", () => { if (still) player.play().catch(() => {}); });
    near.observe(player);
    inside.observe(player);
    const text = [video.name, video.prompt, video.seed === null ? "" : `seed ${video.seed}`, video.recipe, video.kind];
    return { cell, video, index, text: text.filter(Boolean).join(" ").toLowerCase() };
  });

  const orders = {
    name: (a, b) => a.index - b.index,
    prompt: (a, b) => (a.video.prompt ?? a.video.name).localeCompare(b.video.prompt ?? b.video.name) || a.index - b.index,
    seed: (a, b) => (a.video.seed ?? Infinity) - (b.video.seed ?? Infinity) || a.index - b.index,
    newest: (a, b) => b.video.changed - a.video.changed || a.index - b.index,
  };

  function show() {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = cells.filter(({ text }) => words.every((word) => text.includes(word)));
    $("grid").replaceChildren(...shown.sort(orders[$("sort").value]).map(({ cell }) => cell));
    $("count").textContent = shown.length === cells.length ? `${cells.length} videos` : `${shown.length} of ${cells.length} videos`;
    $("nothing").hidden = shown.length > 0;
  }

  function open(video) {
    const dialog = $("one");
    dialog.querySelector("video").src = video.src;
    dialog.querySelector("h2").textContent = video.prompt ?? video.name;
    dialog.querySelector("dl").replaceChildren(...Object.entries({
      file: video.src_shown, seed: video.seed, sample: video.sample || null, made: video.kind, recipe: video.recipe,
      size: video.width && video.height ? `${video.width} × ${video.height} px` : null,
      length: video.frames && video.fps ? `${video.frames} frames at ${video.fps} fps, ${video.seconds} s` : null,
      "random weights": video.random,
    }).filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => {
      const term = document.createElement("dt"), told = document.createElement("dd");
      term.textContent = name;
      told.textContent = value;
      return [term, told];
    }));
    dialog.showModal();
  }

  $("filter").addEventListener("input", show);
  $("sort").addEventListener("change", show);
  $("size").addEventListener("input", () => document.documentElement.style.setProperty("--cell", `${$("size").value}px`));
  $("close").addEventListener("click", () => $("one").close());
  $("one").addEventListener("close", () => $("one").querySelector("video").removeAttribute("src"));
  $("one").addEventListener("click", (event) => { if (event.target === $("one")) $("one").close(); });
  const paint = (theme) => { document.documentElement.dataset.theme = theme; };
  paint(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  $("theme").addEventListener("click", () => paint(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  show();
})();
