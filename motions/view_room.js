// Script of the page: viser's notices do not lie on the figures, nor a slider's handle on the words at its ends, and
// where its panel stands at the bottom, as on narrow screens, it scrolls and leaves the figures free, and a click on its
// head folds it. Labels in it are narrow, and buttons stand in twos, beside the name of their group. lookFrom has the camera
// go so far away that all are seen in what the panel leaves free, and puts them into the middle of that, also when the panel
// is folded or opened. Keys are the page's also after a click in the panel: else space would press the same button once more,
// and an arrow move a slider. A key that is held steers six times a second, whatever the keyboard's rate; one that pauses,
// pushes or the like acts once. All this is done once: the server may come again.
if (!window.lookFrom) {
  const sheet = ".mantine-Paper-root[style*='position: fixed'][style*='bottom: 0px']";
  const head = sheet + " [style*='cursor: pointer'][style*='height: 3.5em']";
  const look = ".mantine-Notifications-root, .mantine-Slider-mark {display: none !important}"
    + ".mantine-Slider-markLabel {margin-top: 7px} .mantine-Slider-root {margin-bottom: 7px}"
    + "[style*='width: 7.25em'], [style*='width: 6.6125em'] {width: 5.6em !important; padding-right: 4px !important}"
    + "button[style*='fit-content'] {flex-basis: 45% !important; padding: 0 2px}"
    + "[style*='width: 7.25em']:has(+ * button[style*='fit-content']) {width: 2.6em !important}"
    + sheet + " {max-height: 42vh !important; overflow-y: auto !important; max-width: 100vw}"
    + head + "::after {content: '▴'; margin-left: 0.6em}" + head + ":has(button)::after {content: '▾'}";
  document.head.insertAdjacentHTML("beforeend", `<style>${look}</style>`);
  let tries = 0;
  const wait = setInterval(() => {
    const fold = document.querySelector(head);
    if (fold || ++tries > 50) clearInterval(wait);
    fold?.click();
  }, 100);
  const panel = () => document.querySelector("[data-floating-window]");
  const free = () => innerWidth > NARROW && !(panel()?.offsetHeight < 80) ? innerWidth - PANEL : innerWidth;
  let breadth = 0, far = 1;
  const fit = base => {
    const {cameraControl, camera} = window.__viserMutable, before = far;
    const room = Math.max(free() / 2 - NAME_WIDTH, free() / 10);  // to each side [pixels]
    far = Math.max(breadth * innerHeight / 2 / room, 1);
    cameraControl.dollyTo((base || cameraControl.distance / before) * far, false);
    const up = innerWidth > NARROW ? 0 : innerHeight / 10;  // over the open panel
    camera.setViewOffset(innerWidth, innerHeight, (innerWidth - free()) / 2, up, innerWidth, innerHeight);
  };
  window.lookFrom = (distance, share) => { breadth = share; fit(distance); };
  addEventListener("resize", () => fit());
  let due = 0;  // before that nothing repeats [ms]
  addEventListener("keydown", event => {
    const {key, code, repeat, target, timeStamp} = event;
    if (!/^[ bgijklmnprtv]$/i.test(key) || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    if (target.matches("textarea, input:not([type=checkbox])")) return;
    const apart = /[jlik]/i.test(key) ? 1000 / 6 : /[bn]/i.test(key) ? 0 : Infinity;
    if (target === document.body && !(repeat && timeStamp < due)) {
      due = repeat ? Math.max(due + apart, timeStamp + apart / 2) : timeStamp + apart;
      return;
    }
    event.stopImmediatePropagation();
    event.preventDefault();
    if (target === document.body) return;
    target.blur();
    document.body.dispatchEvent(new KeyboardEvent("keydown", {key, code, repeat, bubbles: true, cancelable: true}));
  }, true);
  // a comma in a number is its decimal point
  addEventListener("keydown", event => {
    if (event.key !== "," || !event.target.matches("input[inputmode]")) return;
    event.preventDefault();
    document.execCommand("insertText", false, ".");
  }, true);
  // a number counts when it is entered or left: until then it stands in a box of its own, in the place of viser's, which
  // would tell each digit, cut what is out of range, and be written over by what moves; what is no number changes nothing
  addEventListener("focusin", ({target: box}) => {
    if (!box.matches("input[inputmode]:not([data-typed])")) return;
    const own = box.cloneNode();
    own.removeAttribute("id");
    own.dataset.typed = "";
    own.value = box.value;
    own.addEventListener("input", () => { own.dataset.typed = "yes"; });
    own.addEventListener("keydown", ({key}) => {
      if (key !== "Escape") return;
      own.dataset.typed = "";
      own.blur();
    });
    own.addEventListener("blur", () => {
      setTimeout(() => {  // hidden as long as viser, which has a new number, would take the keys there
        own.remove();
        box.style.display = "";
      }, 200);
      if (!own.dataset.typed || !own.value.trim() || !isFinite(own.value)) return;
      Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(box, String(Number(own.value)));
      box.dispatchEvent(new Event("input", {bubbles: true}));
    }, {once: true});
    box.after(own);
    box.style.display = "none";
    own.focus();
    own.select();
  });
  // a number that is entered and a slider that is let go give the keys back to the page
  addEventListener("keydown", ({key, target}) => key === "Enter" && target.matches("input") && setTimeout(() => target.blur()));
  addEventListener("pointerup", () => {
    if (document.activeElement.closest(".mantine-Slider-root")) document.activeElement.blur();
  }, true);
  // viser marks what is under the pointer when that moves, and what goes on its way stays marked: not for longer than this
  let rest = 0;
  addEventListener("pointermove", ({target}) => {
    clearTimeout(rest);
    const leaves = () => target.dispatchEvent(new PointerEvent("pointerleave", {bubbles: true}));
    if (target.matches("canvas")) rest = setTimeout(leaves, 300);
  });
  let room = free();
  setInterval(() => {
    if (free() !== room && breadth) fit();
    room = free();
  }, 200);
}
