"""Training and asking the study's rows on one or several GPUs at a time."""

import json
import pathlib
import queue
import signal
import subprocess
import threading
import time

import study_recipes as recipes


class Stopped(Exception):
    """A child failed, or was told to stop; what there is to say has been said."""


class Runner:
    """A list of (row, seed), and a thread for each device that takes the next one it can start.

    options: msa, work, results, tokens, device, gpus, minutes, counts, longest, overlap, set; train, ask: what to do
    """

    def __init__(self, options):
        self.options = options
        self.work = pathlib.Path(options.work)
        self.lock = threading.RLock()
        self.children = set()
        self.n_busy = 0
        self.stopped = self.failed = False

    def say(self, text):
        with self.lock:
            print(time.strftime("%H:%M:%S"), text, flush=True)

    def call(self, name, *arguments):
        """Standard output of the program, run in the working folder."""
        log = self.work / "runs" / name / "talk.log"
        with self.lock, open(log, "ab") as talk:
            if self.stopped:
                raise Stopped
            child = subprocess.Popen([self.options.msa, *map(str, arguments)], cwd=self.work, text=True,
                                     stdout=subprocess.PIPE, stderr=talk)
            self.children.add(child)
        output = child.communicate()[0]
        with self.lock:
            self.children.discard(child)
            if child.returncode == 0:
                return output
            if not self.stopped:
                self.failed = True
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
                self.say(f"{name}: msa {arguments[0]} failed: {last[-1]}")
        raise Stopped

    def stop(self, *_):
        """Ctrl-C for every child: a trainer saves, and the same command goes on later."""
        with self.lock:
            self.stopped = True
            for child in self.children:
                child.send_signal(signal.SIGINT)

    def train(self, row, seed, device):
        options, name = self.options, recipes.run_name(row, seed)
        folder = self.work / "runs" / name
        config, origin = recipes.make_config(row, seed, options.tokens, options.set)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        if origin and origin["convert"] and not (folder / "converted" / "config.json").exists():
            self.call(name, "convert", origin["source"], f"runs/{name}/converted", "--steps", 0, "--sparse-steps", 0,
                      *origin["convert"])
        begin = time.monotonic()
        model = self.call(name, "train", f"runs/{name}/train.json", "--device", device, "--quiet").strip()
        (folder / "model.txt").write_text(model, encoding="utf-8")
        self.say(f"{name}: trained in {time.monotonic() - begin:.0f} s")

    def ask(self, row, seed, device):
        if row in recipes.NOT_ASKED:
            return
        options, name, plan = self.options, recipes.run_name(row, seed), recipes.read_questions()
        model = (self.work / "runs" / name / "model.txt").read_text(encoding="utf-8")
        jobs = [(",".join(plan["tasks"]), *job) for job in plan["count"].items()]
        jobs += [("perplexity", *job) for job in plan["perplexity"].items()]
        jobs += [("recall", *job) for job in plan["recall"].items() if recipes.selects(row)]
        begin, answers = time.monotonic(), []
        for tasks, length, count in jobs:
            if int(length) > options.longest:
                continue
            got = self.call(name, "eval", model, "--task", tasks, "--length", length, "--count",
                            max(1, round(count * options.counts)), "--seed", plan["seed"], "--haystack",
                            plan["haystack"], "--device", device, "--json")
            answers += json.loads(got)["tasks"]
        self.write_result(row, seed, answers)
        self.say(f"{name}: asked in {time.monotonic() - begin:.0f} s")

    def write_result(self, row, seed, answers):
        name = recipes.run_name(row, seed)
        folder = self.work / "runs" / name
        config = recipes.read_json(folder / "train.json")
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        steps = [line for line in log if line["kind"] == "step"]
        every = config["log"]["every"]
        result = {
            "row": row,
            "seed": seed,
            "device": device_name(self.options.device),
            "tokens": log[-1]["tokens"],
            "seconds": round(every * sum(line["seconds"] for line in steps), 1),
            "tflop": round(every * sum(line["gflops"] for line in steps) / 1000, 1),
            "curve": [[line["tokens"], round(line["loss"], 4)] for line in steps],
            "worst_expert_load": steps[-1]["worst_expert_load"],
            "validation": [line for line in log if line["kind"] == "validation"],
            "eval": answers,
        }
        folder = pathlib.Path(self.options.results)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(result) + "\n", encoding="utf-8")

    def is_ready(self, row, seed):
        if not self.options.train:
            return True
        origin = recipes.make_config(row, seed, self.options.tokens, self.options.set)[1]
        return origin is None or (self.work / origin["source"] / "config.json").exists()

    def take(self, waiting):
        """The next run that can start; None: wait for one that others are making."""
        with self.lock:
            one = next((one for one in waiting if self.is_ready(*one)), None)
            if one:
                waiting.remove(one)
                self.n_busy += 1
            elif waiting and not self.n_busy and not self.stopped:
                self.failed = self.stopped = True
                self.say(f"{recipes.run_name(*waiting[0])}: the run it begins with is not there")
            return one

    def work_on(self, waiting, device):
        trained = queue.SimpleQueue()
        asker = threading.Thread(target=self.ask_all, args=(trained, device))
        asker.start()
        while waiting and not self.stopped:
            one = self.take(waiting)
            if not one:
                time.sleep(0.5)
                continue
            try:
                if self.options.train:
                    self.train(*one, device)
                if self.options.ask and self.options.overlap:
                    trained.put(one)
                elif self.options.ask:
                    self.ask(*one, device)
            except Stopped:
                pass
            with self.lock:
                self.n_busy -= 1
        trained.put(None)
        asker.join()

    def ask_all(self, trained, device):
        """Ask each run that arrives, beside the training of the next."""
        try:
            while one := trained.get():
                self.ask(*one, device)
        except Stopped:
            pass

    def watch(self, names):
        """A line for each run that is being trained."""
        for name in names:
            log = self.work / "runs" / name / "log.jsonl"
            if not log.exists() or time.time() - log.stat().st_mtime > 20:
                continue
            lines = map(json.loads, log.read_text(encoding="utf-8").splitlines()[-3:])
            for line in [line for line in lines if line["kind"] == "step"][-1:]:
                self.say(f"  {name}: {line['stage']}, step {line['step']}, loss {line['loss']:.3f}, "
                         f"{line['tokens_per_second']:,.0f} tokens/s")

    def run(self, rows, seeds):
        """0: everything is done; 1: something failed; 130: stopped, go on with the same command."""
        options = self.options
        waiting = [(row, seed) for seed in seeds for row in rows]
        names = [recipes.run_name(*one) for one in waiting]
        devices = [f"cuda:{i}" for i in range(options.gpus)] if options.device == "cuda" else ["cpu"] * options.gpus
        threads = [threading.Thread(target=self.work_on, args=(waiting, device)) for device in devices]
        signal.signal(signal.SIGINT, self.stop)
        begin = told = time.monotonic()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            now = time.monotonic()
            if options.minutes and now - begin > 60 * options.minutes:
                self.stop()
                options.minutes = 0
            if now - told > 20:
                told = now
                self.watch(names)
        return 1 if self.failed else 130 if self.stopped else 0


def device_name(device):
    if device == "cuda":
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else "cpu"
