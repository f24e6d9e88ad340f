"use strict";
// All sounds of a song's stem play at once on one clock, and all but one are muted. Switching to
// another changes two gains, so the position stays.
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const at = (id) => document.getElementById(id);
  const FADE = 0.008; // seconds of the crossfade between two sounds, so that nothing clicks
  const KINDS = [
    "mixture", "truth", "pretrained", "scratch", "refined", "peer", "equaliser", "ceiling",
    "drums", "bass", "other", "vocals", "stem",
  ];

  let context = null;
  let song = 0, part = 0, sound = 0;
  let loaded = null; // {key, buffers, seconds} of the part that is shown
  let playing = null; // {sources, gains, started, from} while playing
  let resuming = false; // whether to play once the part has loaded
  let position = 0; // seconds, while nothing plays
  let request = 0; // counts loads: results of older ones are discarded

  const waiting = new Map(); // file -> function that takes its clips
  const state = {
    get playing() { return playing !== null; },
    get position() { return now(); },
    get song() { return song; },
    get part() { return part; },
    get sound() { return sound; },
    get ready() { return loaded !== null; },
    get context() { return context; },
    level: () => level(),
  };
  window.jukesep = { sounds: (file, clips) => waiting.get(file)?.(clips), state };

  const current = () => content.songs[song]?.parts[part];

  function say(text, wrong = false) {
    at("state").textContent = text;
    at("state").classList.toggle("wrong", wrong);
  }

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // ---- songs and stems ----

  function begin() {
    document.title = content.title;
    at("title").textContent = content.title;
    at("about").textContent = content.about;
    if (!content.songs.length) {
      document.querySelector("main").hidden = true;
      return;
    }
    content.songs.forEach((one, number) => {
      at("song").append(element("option", { value: number, textContent: one.name }));
    });
    for (const pick of content.picks) {
      const text = element("span", { textContent: pick.text });
      const button = element("button", { type: "button" }, element("b", { textContent: pick.name }), " ", text);
      button.addEventListener("click", () => show(pick.song, pick.part, pick.sound));
      at("picks").append(button);
    }
    at("song").addEventListener("change", () => {
      at("song").blur(); // give the keys back to the page
      show(Number(at("song").value), part);
    });
    // Draw the waveforms again in the new colours.
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(song, part));
    at("play").addEventListener("click", toggle);
    at("spectrum-box").addEventListener("click", (event) => {
      const box = at("spectrum-box").getBoundingClientRect();
      seek(((event.clientX - box.left) / box.width) * seconds());
    });
    document.addEventListener("keydown", key);
    const first = content.picks[0] ?? { song: 0, part: 0, sound: 0 };
    show(first.song, first.part, first.sound);
    requestAnimationFrame(frame);
  }

  function show(nextSong, nextPart, nextSound = sound) {
    resuming ||= playing !== null;
    const keep = nextSong === song ? now() : 0;
    stop();
    song = nextSong;
    part = Math.min(nextPart, content.songs[song].parts.length - 1);
    position = keep;
    sound = Math.min(nextSound, current().sounds.length - 1);
    loaded = null;
    at("song").value = song;
    at("note").textContent = content.songs[song].note;
    tabs();
    rows();
    load();
  }

  function tabs() {
    const box = at("parts");
    box.replaceChildren();
    const parts = content.songs[song].parts;
    box.hidden = parts.length < 2;
    parts.forEach((one, number) => {
      const button = element("button", { type: "button", textContent: one.name });
      button.setAttribute("role", "tab");
      button.setAttribute("aria-selected", number === part);
      button.addEventListener("click", () => show(song, number));
      box.append(button);
    });
  }

  function rows() {
    const box = at("sounds");
    box.replaceChildren();
    current().sounds.forEach((one, number) => {
      const name = element("span", { className: "name", textContent: one.label });
      if (one.hint) name.append(element("span", { className: "hint", textContent: one.hint }));
      const score = element("span", { className: "score" });
      if (one.score !== null) {
        score.append(one.score.toFixed(2), element("small", { textContent: " dB" }));
      }
      const cursor = element("i", { className: "cursor", hidden: true });
      const wave = element("div", { className: "wave" }, cursor);
      const kind = KINDS.includes(one.kind) ? one.kind : "stem";
      const row = element("div", { className: "sound", tabIndex: 0 });
      row.style.setProperty("--own", `var(--${kind})`);
      row.style.borderLeftColor = "var(--own)";
      row.setAttribute("role", "radio");
      row.append(
        element("kbd", { textContent: number < 9 ? number + 1 : "" }), name, score, wave,
      );
      row.addEventListener("click", (event) => {
        hear(number);
        if (wave.contains(event.target)) {
          const place = wave.getBoundingClientRect();
          seek(((event.clientX - place.left) / place.width) * seconds());
        }
      });
      box.append(row);
    });
    mark();
  }

  function mark() {
    [...at("sounds").children].forEach((row, number) => {
      row.setAttribute("aria-checked", number === sound);
    });
    const one = current().sounds[sound];
    at("now").textContent = `${content.songs[song].name} · ${one.label}`;
    at("spectrum-of").textContent = `Spectrum: ${one.label}`;
  }

  // ---- sounds ----

  function fetchClips(file) {
    return new Promise((resolve, reject) => {
      const script = element("script", { src: file });
      waiting.set(file, (clips) => { waiting.delete(file); script.remove(); resolve(clips); });
      script.addEventListener("error", () => {
        waiting.delete(file);
        script.remove();
        reject(new Error(`${file} is missing. Copy the whole folder.`));
      });
      document.head.append(script);
    });
  }

  async function load() {
    const mine = ++request, wanted = current();
    say("Loading …");
    try {
      // At the songs' own sample rate, so that nothing is resampled.
      context ??= new AudioContext({ sampleRate: content.rate });
      const clips = await fetchClips(wanted.file);
      const buffers = await Promise.all(clips.map((clip) => {
        const bytes = Uint8Array.from(atob(clip.data), (char) => char.charCodeAt(0));
        return context.decodeAudioData(bytes.buffer);
      }));
      if (mine !== request) return;
      loaded = {
        buffers,
        seconds: Math.max(...buffers.map((buffer) => buffer.duration)),
        peak: Math.max(1, ...clips.flatMap((clip) => clip.peaks)), // thousandths of full scale
        scales: clips.map((clip) => clip.gain), // what a buffer was divided by
        pictures: [], // spectra, drawn on demand
      };
      position = Math.min(position, loaded.seconds);
      say("");
      draw(clips);
      spectrum();
      if (resuming) play();
    } catch (error) {
      if (mine === request) say(String(error.message ?? error), true);
    }
  }

  const seconds = () => loaded?.seconds ?? current()?.seconds ?? 0;

  function now() {
    if (!playing) return position;
    // Before the first sample sounds, the position is where it will start.
    return Math.min(Math.max(context.currentTime - playing.started, playing.from), seconds());
  }

  function play() {
    if (!loaded || playing) return;
    resuming = false;
    if (position >= seconds() - 0.01) position = 0;
    context.resume();
    const start = context.currentTime + 0.02;
    const gains = loaded.buffers.map((_, number) => {
      const gain = new GainNode(context, { gain: 0 });
      gain.connect(context.destination);
      gain.gain.setValueAtTime(0, start);
      if (number === sound) gain.gain.linearRampToValueAtTime(loudness(number), start + FADE);
      return gain;
    });
    const sources = loaded.buffers.map((buffer, number) => {
      const source = new AudioBufferSourceNode(context, { buffer });
      source.connect(gains[number]);
      source.start(start, Math.min(position, buffer.duration));
      return source;
    });
    playing = { sources, gains, started: start - position, from: position };
    icon();
  }

  function stop() {
    if (!playing) return;
    position = now();
    fade(sound, 0);
    for (const source of playing.sources) source.stop(context.currentTime + FADE);
    playing = null;
    icon();
  }

  function toggle() {
    if (!loaded) resuming = !resuming;
    else if (playing) stop();
    else play();
  }

  // Sounds above full scale lower all sounds of their part, so that levels stay comparable.
  const loudness = (number) => loaded.scales[number] / Math.max(...loaded.scales);

  function fade(number, to) {
    const gain = playing.gains[number].gain, time = context.currentTime;
    gain.cancelScheduledValues(time);
    gain.setValueAtTime(gain.value, time);
    gain.linearRampToValueAtTime(to, time + FADE);
  }

  function icon() {
    at("icon").setAttribute("d", playing ? "M6 4h4v16H6zM14 4h4v16h-4z" : "M7 4v16l13-8z");
    at("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  }

  function seek(to) {
    const resume = playing !== null;
    stop();
    position = Math.max(0, Math.min(to, seconds()));
    if (resume) play();
  }

  function hear(number) {
    if (number < 0 || number >= current().sounds.length || number === sound) return;
    if (playing) {
      fade(sound, 0);
      fade(number, loudness(number));
    }
    sound = number;
    mark();
    spectrum();
  }

  const level = () => (playing ? playing.gains.map((gain) => gain.gain.value) : []);

  // ---- pictures ----

  function draw(clips) {
    [...at("sounds").children].forEach((row, number) => {
      const box = row.querySelector(".wave");
      const colour = getComputedStyle(row).getPropertyValue("--own").trim();
      WaveSurfer.create({
        container: box,
        peaks: [clips[number].peaks.map((peak) => peak / loaded.peak)],
        duration: loaded.seconds,
        height: box.clientHeight,
        waveColor: colour,
        progressColor: colour,
        cursorWidth: 0,
        interact: false,
        normalize: false,
        barWidth: 2,
        barGap: 1,
        barRadius: 1,
      });
    });
  }

  function frame() {
    const time = now(), share = seconds() ? time / seconds() : 0;
    if (playing && time >= seconds()) {
      const again = at("loop").checked;
      stop();
      position = again ? 0 : seconds();
      if (again) play();
    }
    at("time").textContent =
      `${Math.floor(time / 60)}:${(time % 60).toFixed(1).padStart(4, "0")}`;
    for (const cursor of document.querySelectorAll(".cursor")) {
      cursor.hidden = !loaded;
      cursor.style.left = `${100 * share}%`;
    }
    requestAnimationFrame(frame);
  }

  // The spectrogram of the current sound, over a range of 80 dB.
  function spectrum() {
    if (!loaded) return;
    loaded.pictures[sound] ??= picture(loaded.buffers[sound], loaded.scales[sound]);
    at("spectrum").getContext("2d").putImageData(loaded.pictures[sound], 0, 0);
    at("spectrum-range").textContent = `0 … ${(context.sampleRate / 2000).toFixed(1)} kHz`;
  }

  function picture(buffer, scale) {
    const samples = new Float32Array(buffer.length); // the mean of its channels
    for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
      const share = scale / buffer.numberOfChannels;
      buffer.getChannelData(channel).forEach((value, i) => { samples[i] += share * value; });
    }
    const canvas = at("spectrum"), size = 1024, bins = size / 2;
    const columns = canvas.width, lines = canvas.height, loudest = loaded.peak / 1000 / 4;
    const found = new ImageData(columns, lines);
    const window = Float64Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    const real = new Float64Array(size), imaginary = new Float64Array(size);
    // All pictures are as wide as the longest sound, so that a place is the same time in each.
    const length = loaded.seconds * buffer.sampleRate;
    for (let x = 0; x < columns; x++) {
      const start = Math.round((x / columns) * length - size / 2);
      for (let i = 0; i < size; i++) {
        real[i] = (samples[start + i] ?? 0) * window[i];
        imaginary[i] = 0;
      }
      transform(real, imaginary);
      for (let y = 0; y < lines; y++) {
        const from = Math.floor(((lines - 1 - y) / lines) * bins);
        const to = Math.max(from + 1, Math.floor(((lines - y) / lines) * bins));
        let power = 0;
        for (let k = from; k < to; k++) power = Math.max(power, real[k] ** 2 + imaginary[k] ** 2);
        const decibels = 10 * Math.log10(power / (size / 4) ** 2 / loudest ** 2 + 1e-12);
        const share = Math.max(0, Math.min(1, (decibels + 80) / 80));
        found.data.set(
          [255 * share ** 0.9, 255 * share ** 2.2, 90 * Math.sin(Math.PI * share) + 120 * share ** 4, 255],
          4 * (y * columns + x),
        );
      }
    }
    return found;
  }

  function transform(real, imaginary) {
    const n = real.length;
    for (let i = 1, j = 0; i < n; i++) {
      let bit = n >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) {
        [real[i], real[j]] = [real[j], real[i]];
        [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
      }
    }
    for (let span = 2; span <= n; span <<= 1) {
      const angle = (-2 * Math.PI) / span;
      for (let k = 0; k < span / 2; k++) {
        const c = Math.cos(angle * k), s = Math.sin(angle * k);
        for (let i = k; i < n; i += span) {
          const j = i + span / 2;
          const x = real[j] * c - imaginary[j] * s, y = real[j] * s + imaginary[j] * c;
          real[j] = real[i] - x;
          imaginary[j] = imaginary[i] - y;
          real[i] += x;
          imaginary[i] += y;
        }
      }
    }
  }

  // ---- keys ----

  function key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === "SELECT") return;
    const songs = content.songs.length, parts = content.songs[song].parts.length;
    const does = {
      " ": toggle,
      ArrowLeft: () => seek(now() - 2),
      ArrowRight: () => seek(now() + 2),
      ArrowUp: () => hear(sound - 1),
      ArrowDown: () => hear(sound + 1),
      "[": () => show((song + songs - 1) % songs, part),
      "]": () => show((song + 1) % songs, part),
      ",": () => show(song, (part + parts - 1) % parts),
      ".": () => show(song, (part + 1) % parts),
      0: () => seek(0),
      Enter: event.target.matches?.(".sound") ? () => event.target.click() : null,
      l: () => at("loop").click(),
    }[event.key] ?? (/^[1-9]$/.test(event.key) ? () => hear(Number(event.key) - 1) : null);
    if (!does) return;
    event.preventDefault();
    if (!(event.repeat && event.key === " ")) does();
  }

  begin();
})();
