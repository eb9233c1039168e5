// An exported policy (deploy/export.py) walks in the browser: MuJoCo's physics and ONNX Runtime in WebAssembly, three.js draws.
// Z is up, metres, radians; MuJoCo's conventions throughout. Nothing is asked of any other host.
import loadMujoco from "@mujoco/mujoco";
import * as ort from "onnxruntime-web/wasm";
import * as THREE from "three";
import { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";

const LATE = 0.25; // what the machine does not manage beyond this is dropped [s]
const TURN = Math.PI / 12, FASTER = 0.25; // by a key [rad, m/s]
const FASTER_RATE = 1.0; // by a key that is held [m/s^2]
const HOLD = 250; // after that it is held [ms]
const PUSH = 40.0; // impulse of a push [N s]
const PUSH_SECONDS = 0.1;
const REST = 2.0; // how long it lies after a fall [s]
const ARROWS = { ArrowLeft: "j", ArrowRight: "l", ArrowUp: "i", ArrowDown: "k" }; // to the keys of deploy/steer.py
const COLOURS = { right: 0x2a4667, left: 0x9bb5d4, other: 0x4a7ab2, told: 0x006e19 }; // those of motions/view.py
// From where the camera looks, ahead, left and up of the character's course: at first, from the side, the front, above [m].
const VIEWS = [[-2.8, -2.8, 1.0], [0.0, -4.2, 0.0], [4.2, 0.0, 0.0], [0.0, -0.1, 6.0]];
const PLANE = 0, SPHERE = 2, CAPSULE = 3, BOX = 6; // MuJoCo's mjtGeom

// ---- 1. Loading ----

async function get(name) {
  const { ok, status, body } = await fetch(name);
  if (!ok) throw new Error(`${name} does not come: status ${status}`);
  return new Response(name.endsWith(".bin") ? body.pipeThrough(new DecompressionStream("gzip")) : body).arrayBuffer();
}

async function load() {
  const names = ["mujoco.bin", "onnxruntime.bin", "policy.onnx", "policy.xml", "policy.json"];
  const [physics, runtime, ...policy] = await Promise.all(names.map(get));
  const [onnx, xml, json] = policy.map((file) => new TextDecoder().decode(file));
  const about = JSON.parse(json);
  if (![onnx, xml].every((text) => text.includes(about.checkpoint?.sha256))) {
    throw new Error("policy.onnx, policy.xml and policy.json are not of one policy; deploy/export.py writes all three");
  }
  ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send
  ort.env.wasm.wasmBinary = runtime;
  const mujoco = await loadMujoco({ wasmBinary: physics });
  const session = await ort.InferenceSession.create(policy[0], { executionProviders: ["wasm"] });
  return [mujoco, session, xml, about];
}

// ---- 2. The physics ----

class Walker {
  constructor(mujoco, session, xml, about) {
    this.mujoco = mujoco;
    this.session = session;
    this.about = { turn_rate_rad_s: 2.0, ...about }; // older exports do not say at what rate it may be told to turn
    this.model = mujoco.MjModel.from_xml_string(xml);
    this.data = new mujoco.MjData(this.model);
    this.dt = this.model.opt.timestep; // [s]
    this.told = "command" in about.inputs; // whether it takes commands
    this.speeds = about.speed_range_m_s ?? [0, 0];
    const bodies = about.fall_bodies.map((name) => mujoco.mj_name2id(this.model, mujoco.mjtObj.mjOBJ_BODY.value, name));
    this.falls = new Set(bodies);
    this.goal = 0.0; // where it is to go [rad, world]
    this.speed = this.speeds[0]; // that it is told [m/s]
    this.start = -1;
    this.reset();
  }

  reset() { // but not where it is to go, and how fast
    this.start = (this.start + 1) % this.about.starts;
    this.mujoco.mj_resetDataKeyframe(this.model, this.data, this.start);
    this.mujoco.mj_forward(this.model, this.data); // where the geoms are, which the first picture draws
    this.heading = 0.0; // that it is told, which turns to the goal [rad, world]
    this.steps = 0;
    this.places = [this.data.qpos.slice(0, 2)]; // on the ground, in the last second, from step to step of the policy [m]
    this.owed = 0.0; // time that has passed, but not yet in the physics [s]
    this.pushed = 0; // physics steps until a push ends
    this.down = 0.0; // how long it lies [s]
  }

  push(angle) {
    const force = [Math.cos(angle), Math.sin(angle)].map((x) => (x * PUSH) / PUSH_SECONDS); // [N]
    this.data.xfrc_applied.set(force, 6); // of body 1, the root
    this.pushed = Math.round(PUSH_SECONDS / this.dt);
  }

  async think() {
    const most = this.about.turn_rate_rad_s / this.about.control_hz;
    const way = this.goal - this.heading;
    this.heading += THREE.MathUtils.clamp(Math.atan2(Math.sin(way), Math.cos(way)), -most, most);
    const double = (values) => new ort.Tensor("float64", Float64Array.from(values), [1, values.length]);
    const seen = { qpos: double(this.data.qpos), qvel: double(this.data.qvel) };
    if (this.told) seen.command = double([this.heading, this.speed]);
    const { targets } = await this.session.run(seen);
    this.data.ctrl.set(targets.data);
  }

  // Let time pass [s]: as many steps as fit into it, the policy at the start of each control step.
  async advance(seconds) {
    this.owed += seconds;
    for (; this.owed >= this.dt; this.owed -= this.dt) {
      if (this.steps % this.about.substeps === 0) {
        await this.think();
        this.places = [...this.places.slice(-this.about.control_hz), this.data.qpos.slice(0, 2)];
        if (this.down || this.fallen()) this.down += this.dt * this.about.substeps;
      }
      this.mujoco.mj_step(this.model, this.data);
      this.steps += 1;
      this.pushed -= 1;
      if (this.pushed === 0) this.data.xfrc_applied.fill(0.0);
    }
    if (this.down > REST) this.reset();
  }

  way() { // of the last second, in which sway does not count [m/s]
    const [[x, y], [endX, endY]] = [this.places[0], this.places.at(-1)];
    const seconds = Math.max(this.places.length - 1, 1) / this.about.control_hz;
    return [(endX - x) / seconds, (endY - y) / seconds];
  }

  fallen() {
    const contacts = this.data.contact; // a copy
    let found = false;
    for (let i = 0; i < contacts.size(); i++) {
      const contact = contacts.get(i);
      const pair = [contact.geom1, contact.geom2].map((geom) => this.model.geom_bodyid[geom]);
      contact.delete();
      found ||= pair.includes(0) && pair.some((x) => this.falls.has(x)); // body 0 is the world
    }
    contacts.delete();
    return found;
  }
}

// ---- 3. The picture ----

function shapeOf(type, [x, y, z]) {
  if (type === SPHERE) return new THREE.SphereGeometry(x, 32, 24);
  if (type === BOX) return new THREE.BoxGeometry(2 * x, 2 * y, 2 * z);
  if (type === CAPSULE) return new THREE.CapsuleGeometry(x, 2 * y, 12, 24).rotateX(Math.PI / 2); // MuJoCo's lie along z
  throw new Error(`no shape for geoms of type ${type}`);
}

function groundTexture() {
  const canvas = new OffscreenCanvas(256, 256);
  const paint = canvas.getContext("2d");
  for (const [colour, ...square] of [["#f2f4f6", 0, 0, 256, 256], ["#d5dbe2", 0, 0, 128, 128], ["#d5dbe2", 128, 128, 128, 128]]) {
    paint.fillStyle = colour;
    paint.fillRect(...square);
  }
  const texture = new THREE.CanvasTexture(canvas);
  texture.wrapS = texture.wrapT = THREE.RepeatWrapping;
  texture.repeat.set(60, 60);
  return Object.assign(texture, { colorSpace: THREE.SRGBColorSpace, anisotropy: 8 });
}

class Stage {
  constructor(walker) {
    this.walker = walker;
    const sky = new THREE.Color(0xdfeaf3);
    this.scene = Object.assign(new THREE.Scene(), { background: sky, fog: new THREE.Fog(sky, 12, 45) });
    this.camera = new THREE.PerspectiveCamera(40, 1, 0.1, 100);
    this.camera.up.set(0, 0, 1);
    this.renderer = new THREE.WebGLRenderer({ antialias: true });
    this.renderer.shadowMap.enabled = true;
    document.body.prepend(this.renderer.domElement);
    this.orbit = new OrbitControls(this.camera, this.renderer.domElement);
    Object.assign(this.orbit, { maxPolarAngle: 1.57, enablePan: false });
    this.course = 0.0; // smooth [rad]
    this.look(0);
    this.group = new THREE.Group(); // goes where the character goes
    const sun = new THREE.DirectionalLight(0xffffff, 2.2);
    sun.position.set(-2, -3, 6);
    sun.castShadow = true;
    sun.shadow.mapSize.set(2048, 2048);
    Object.assign(sun.shadow.camera, { left: -2.5, right: 2.5, top: 2.5, bottom: -2.5 });
    this.ground = new THREE.Mesh(new THREE.PlaneGeometry(120, 120), new THREE.MeshLambertMaterial({ map: groundTexture() }));
    this.ground.receiveShadow = true;
    const green = new THREE.MeshStandardMaterial({ color: COLOURS.told, roughness: 0.6 });
    const along = (shape, x) => new THREE.Mesh(shape.rotateZ(-Math.PI / 2).translate(x, 0, 0.04), green);
    this.arrow = new THREE.Group().add(along(new THREE.CylinderGeometry(0.025, 0.025, 1, 16), 0.5));
    this.arrow.add(along(new THREE.ConeGeometry(0.07, 0.2, 24), 0.1));
    this.arrow.visible = walker.told;
    this.group.add(sun, sun.target, this.arrow);
    this.scene.add(this.group, this.ground, new THREE.HemisphereLight(0xffffff, 0xb8c0cc, 2.0));
    this.geoms = this.meshes();
    addEventListener("resize", () => this.resize());
    this.resize();
  }

  meshes() {
    const { model, mujoco } = this.walker;
    const made = [];
    for (let i = 0; i < model.ngeom; i++) {
      if (model.geom_type[i] === PLANE) continue;
      const name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY.value, model.geom_bodyid[i]);
      const material = new THREE.MeshStandardMaterial({ color: COLOURS[name.split("_")[0]] ?? COLOURS.other, roughness: 0.6 });
      const mesh = new THREE.Mesh(shapeOf(model.geom_type[i], model.geom_size.slice(3 * i, 3 * i + 3)), material);
      Object.assign(mesh, { castShadow: true, receiveShadow: true, matrixAutoUpdate: false });
      this.scene.add(mesh);
      made.push([i, mesh]);
    }
    return made;
  }

  resize() {
    this.camera.aspect = innerWidth / innerHeight;
    this.camera.zoom = Math.min(this.camera.aspect / 1.2, 1.0); // as wide a view where the window is narrow
    this.camera.updateProjectionMatrix();
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    this.renderer.setSize(innerWidth, innerHeight);
  }

  look(view) {
    this.view = view;
    const way = new THREE.Vector3(...VIEWS[view]).applyAxisAngle(this.camera.up, this.course);
    this.camera.position.addVectors(this.orbit.target, way);
  }

  draw() {
    const { data, heading, speed } = this.walker;
    const { qpos: [x, y], geom_xpos: places, geom_xmat: turns } = data;
    const turn = new THREE.Matrix3();
    for (const [i, mesh] of this.geoms) {
      turn.fromArray(turns, 9 * i).transpose(); // MuJoCo's stand row by row
      mesh.matrix.setFromMatrix3(turn).setPosition(...places.slice(3 * i, 3 * i + 3));
    }
    const [ahead, left] = new THREE.Vector2(...this.walker.way()).rotateAround(new THREE.Vector2(), -this.course);
    const around = 0.1 * Math.atan2(left, ahead);
    this.course += around;
    this.camera.position.sub(this.orbit.target).applyAxisAngle(this.camera.up, this.view % 3 ? around : 0); // 1, 2
    this.orbit.target.set(x, y, 0.8);
    this.camera.position.add(this.orbit.target);
    this.orbit.update();
    this.group.position.set(x, y, 0);
    this.ground.position.set(2 * Math.round(x / 2), 2 * Math.round(y / 2), 0); // by whole patterns
    const [shaft, head] = this.arrow.children; // together as long as the way of a second
    this.arrow.rotation.z = heading;
    shaft.scale.x = head.position.x = Math.max(speed - 0.2, 0.1);
    this.renderer.render(this.scene, this.camera);
  }
}

// ---- 4. Keys, and the loop ----

const demo = (globalThis.demo = { walker: null, stage: null, pace: 1.0 }); // what a test of the page looks at
const held = new Map(); // key -> since when [ms]

function steer(key, turn, faster) {
  const { walker } = demo;
  walker.goal += turn * ((key === "j") - (key === "l"));
  walker.speed = THREE.MathUtils.clamp(walker.speed + faster * ((key === "i") - (key === "k")), ...walker.speeds);
}

function press(key) {
  held.set(key, performance.now());
  steer(key, TURN, FASTER);
  if (key === "p") demo.walker.push(2 * Math.PI * Math.random());
  if (key === "m") demo.pace = demo.pace < 1 ? 1.0 : 0.2;
  if (key === "r") demo.walker.reset();
  if (key === "v") demo.stage.look((demo.stage.view + 1) % VIEWS.length);
}

function listen() {
  const keyOf = ({ key }) => ARROWS[key] ?? key.toLowerCase();
  addEventListener("keydown", (event) => {
    if (event.key in ARROWS) event.preventDefault();
    if (!event.repeat) press(keyOf(event));
  });
  addEventListener("keyup", (event) => held.delete(keyOf(event)));
  addEventListener("blur", () => held.clear());
  for (const button of document.querySelectorAll("button")) {
    const { key } = button.dataset;
    button.hidden = !demo.walker.told && Object.values(ARROWS).includes(key);
    button.addEventListener("pointerdown", () => press(key));
    for (const end of ["pointerup", "pointerleave"]) button.addEventListener(end, () => held.delete(key));
  }
}

function readout(walker, share) {
  if (walker.down) return "it fell, and begins anew";
  const short = (speed) => `${speed.toFixed(1).replace(/^0/, "")} m/s`;
  const own = walker.places.length > walker.about.control_hz ? short(Math.hypot(...walker.way())) : "-";
  const pace = share > 0.97 ? "in real time" : `at ${Math.round(100 * share)} % of real time`;
  return `${own}${walker.told ? `, told ${short(walker.speed)}` : ""}; physics ${pace}`;
}

async function main() {
  const state = document.getElementById("state");
  const say = (fault) => (state.textContent = `It cannot run here: ${fault.message ?? fault}`);
  addEventListener("unhandledrejection", (event) => say(event.reason)); // now or later
  const walker = (demo.walker = new Walker(...(await load())));
  const stage = (demo.stage = new Stage(walker));
  listen();
  let last = performance.now(), share = 1.0; // of real time, that passes in the physics; over a second
  document.addEventListener("visibilitychange", () => (last = performance.now())); // a hidden page is not late
  const frame = async (now) => {
    const passed = Math.max((now - last) / 1000, 0.001); // a picture's time may lie before `last` [s]
    const seconds = Math.min(passed, LATE) * demo.pace;
    share += Math.min(passed, 1.0) * (seconds / passed - share);
    last = now;
    for (const [key, since] of held) {
      if (performance.now() - since > HOLD) steer(key, walker.about.turn_rate_rad_s * seconds, FASTER_RATE * seconds);
    }
    await walker.advance(seconds);
    stage.draw();
    state.textContent = readout(walker, share);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

main();
