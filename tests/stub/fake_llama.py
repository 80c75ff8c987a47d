#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-only
"""A scripted stand-in for llama-server: the routes that modeld needs, on a Unix socket, with faults on order.

Takes llama-server's arguments and ignores those it does not know. What goes wrong, and when, stands in `<model>.script.json` beside the
model, because a child gets neither our environment nor our arguments. Standard library only. Every key may be left out:

    load_seconds      time the load takes (health answers 503 meanwhile)
    exit_in_load      exit code with which the load ends instead
    kill_in_load      true: KILL itself while it loads
    hang_in_load      true: never becomes ready and shows no progress
    stderr, stdout    text written at the start
    flood_bytes       so many bytes without a line break on standard error, before the load
    flood_lines       so many lines on standard error, before the load
    close_output      true: closes both outputs
    ignore_term       true: refuses TERM
    grandchild        "group" or "session": leaves a process behind, in its group or only in its session; pid in <model>.grandchild
    token_seconds     pause before each token
    prompt_seconds    pause before the response head
    tokens            words generated when the request sets no limit (default 8)
    crash_at_token    KILL itself before token N (from 0)
    exit_at_token     exit with code 1 before token N
    hang_at_token     says nothing more from token N on
    cut_at_token      closes the connection before token N
    cut_at_byte       closes the connection after N bytes of the body
    garbage           true: answers with bytes that are not HTTP
    error_at_token    an error event instead of token N
    status            answer every generation with this status
    silent_version    true: `--version` and `--help` hang (script beside the binary: <binary>.script.json)
    unknown_flags     flags that `--help` does not show (the same)
    devices           lines of `--list-devices` (the same)

Token N of an answer is the (N mod number of words)-th word of the prompt, after a blank.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import socketserver
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

HELP = """usage: fake
-m,    --model FNAME
--host HOST
-c,    --ctx-size N
-np,   --parallel N
-b,    --batch-size N
-ub,   --ubatch-size N
-ctk,  --cache-type-k TYPE
-ctv,  --cache-type-v TYPE
-fa,   --flash-attn [on|off|auto]
-ngl,  --n-gpu-layers N
-t,    --threads N
-tb,   --threads-batch N
-fit,  --fit [on|off]
-cram, --cache-ram N
-ctxcp, --ctx-checkpoints, --swa-checkpoints N
--slots, --no-slots
--ui, --webui, --no-ui, --no-webui
--offline
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
--threads-http N
-mm,   --mmproj FILE
-a,    --alias STRING
-lv,   --verbosity, --log-verbosity N
        - 3: info
        - 4: trace (more info)
-dev,  --device <dev1,dev2,..>
-sm,   --split-mode {none,layer}
-ts,   --tensor-split N0,N1,N2,...
--list-devices
"""


class Cut(Exception):
    """End the connection here."""


class State:
    def __init__(self, script, alias, slots):
        self.script = script
        self.alias = alias
        self.ready = threading.Event()
        self.slots = [0] * slots
        self.free = threading.Semaphore(slots)
        self.lock = threading.Lock()

    def take(self):
        self.free.acquire()
        with self.lock:
            slot = self.slots.index(0)
            self.slots[slot] = 1
        return slot

    def give(self, slot):
        with self.lock:
            self.slots[slot] = 0
        self.free.release()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *args):
        pass

    def address_string(self):
        return "unix"

    def do_GET(self):
        state = self.server.state
        if not state.ready.is_set():
            self.reply(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
        elif self.path == "/health":
            self.reply(200, {"status": "ok"})
        elif self.path == "/v1/models":
            self.reply(200, {"object": "list", "data": [{"id": state.alias, "object": "model", "owned_by": "llamacpp"}]})
        elif self.path == "/slots":
            with state.lock:
                self.reply(200, [{"id": i, "is_processing": bool(busy)} for i, busy in enumerate(state.slots)])
        elif self.path == "/props":
            self.reply(200, {"total_slots": len(state.slots), "model_alias": state.alias, "build_info": "fake-1"})
        else:
            self.reply(404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}})

    def do_POST(self):
        script = self.server.state.script
        length = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(length)
        try:
            body = json.loads(raw)
        except ValueError:
            self.reply(400, {"error": {"code": 400, "message": "bad JSON", "type": "invalid_request_error"}})
            return
        if script.get("garbage"):
            self.wfile.write(b"\x00\xff this is not HTTP\r\n\r\n" * 4)
            self.close_connection = True
            return
        if "status" in script:
            self.reply(script["status"], {"error": {"code": script["status"], "message": "scripted", "type": "server_error"}})
            return
        shape = {"/completion": Native, "/completions": Native, "/v1/completions": Text, "/v1/chat/completions": Chat}.get(self.path)
        if shape is None:
            self.reply(404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}})
            return
        slot = self.server.state.take()
        try:
            self.generate(shape(body, self.server.state.alias), body)
        except (Cut, OSError):
            self.close_connection = True
        finally:
            self.server.state.give(slot)

    def generate(self, shape, body):
        script = self.server.state.script
        words = shape.prompt.split() or ["word"]
        limit = shape.limit if shape.limit is not None and shape.limit >= 0 else script.get("tokens", 8)
        self.pause(script.get("prompt_seconds", 0))
        tokens = (f" {words[i % len(words)]}" for i in range(limit))
        if not body.get("stream"):
            text = "".join(self.paced(tokens))
            self.reply(200, shape.whole(text, len(words), limit))
            return
        self.sent = 0
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index, token in enumerate(self.paced(tokens)):
            if script.get("error_at_token") == index:
                self.event({"error": {"code": 500, "message": "scripted", "type": "server_error"}})
                break
            self.event(shape.piece(token))
        else:
            for event in shape.last(len(words), limit):
                self.event(event)
        self.chunk(b"")

    def paced(self, tokens):
        """The tokens, each after its pause and its fault."""
        script = self.server.state.script
        for index, token in enumerate(tokens):
            self.pause(script.get("token_seconds", 0))
            if script.get("crash_at_token") == index:
                os.kill(os.getpid(), signal.SIGKILL)
            if script.get("exit_at_token") == index:
                os._exit(1)
            if script.get("cut_at_token") == index:
                raise Cut
            if script.get("hang_at_token") == index:
                self.pause(3600)
            yield token

    def pause(self, seconds):
        """Wait, but stop at once when the client has gone."""
        if select.select([self.connection], [], [], seconds)[0]:
            raise Cut

    def event(self, event):
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        data = b"data: " + data + b"\n\n"
        cut = self.server.state.script.get("cut_at_byte")
        if cut is not None and self.sent + len(data) >= cut:
            self.chunk(data[: cut - self.sent])
            raise Cut
        self.sent += len(data)
        self.chunk(data)

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Native:
    def __init__(self, body, alias):
        self.prompt = str(body.get("prompt", ""))
        self.limit = body.get("n_predict", body.get("max_tokens"))
        self.alias = alias

    def piece(self, token):
        return {"index": 0, "content": token, "tokens": [1], "stop": False, "id_slot": 0, "tokens_predicted": 0, "tokens_evaluated": 0}

    def last(self, evaluated, predicted):
        return [self.whole("", evaluated, predicted)]

    def whole(self, text, evaluated, predicted):
        counts = {"tokens_predicted": predicted, "tokens_evaluated": evaluated, "timings": {"predicted_n": predicted}}
        return {"index": 0, "content": text, "stop": True, "stop_type": "limit", "stopping_word": "", "model": self.alias, **counts}


class Text(Native):
    def piece(self, token):
        return {"object": "text_completion", "model": self.alias, "choices": [{"index": 0, "text": token, "finish_reason": None}]}

    def last(self, evaluated, predicted):
        return [self.whole("", evaluated, predicted), b"[DONE]"]

    def whole(self, text, evaluated, predicted):
        choice = {"index": 0, "text": text, "finish_reason": "length"}
        return {"object": "text_completion", "model": self.alias, "choices": [choice], "usage": usage(evaluated, predicted)}


class Chat(Text):
    def __init__(self, body, alias):
        super().__init__(body, alias)
        self.prompt = " ".join(str(one.get("content", "")) for one in body.get("messages", []))

    def piece(self, token):
        choice = {"index": 0, "delta": {"content": token}, "finish_reason": None}
        return {"object": "chat.completion.chunk", "model": self.alias, "choices": [choice]}

    def last(self, evaluated, predicted):
        choice = {"index": 0, "delta": {}, "finish_reason": "length"}
        end = {"object": "chat.completion.chunk", "model": self.alias, "choices": [choice], "usage": usage(evaluated, predicted)}
        return [end, b"[DONE]"]

    def whole(self, text, evaluated, predicted):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        return {"object": "chat.completion", "model": self.alias, "choices": [choice], "usage": usage(evaluated, predicted)}


def usage(evaluated, predicted):
    return {"prompt_tokens": evaluated, "completion_tokens": predicted, "total_tokens": evaluated + predicted}


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
    state: State

    def handle_error(self, request, client_address):
        pass


class TcpServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """For the adapter that talks to a server which runs elsewhere: `--host 127.0.0.1 --port N`."""

    daemon_threads = True
    allow_reuse_address = True
    state: State

    def handle_error(self, request, client_address):
        pass


def read_script(path):
    with contextlib.suppress(FileNotFoundError):
        return json.loads(Path(f"{path}.script.json").read_text(encoding="utf-8"))
    return {}


def trouble(script, model):
    """What the script orders before the server listens."""
    if script.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if script.get("grandchild"):
        code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
        group = 0 if script["grandchild"] == "session" else None
        child = subprocess.Popen([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, process_group=group)
        child.stdout.readline()
        Path(f"{model}.grandchild").write_text(str(child.pid), encoding="ascii")
    for name in ("stderr", "stdout"):
        getattr(sys, name).buffer.write(script.get(name, "").encode("latin-1"))
        getattr(sys, name).flush()
    if "flood_bytes" in script:
        for _ in range(script["flood_bytes"] // 65536 + 1):
            os.write(2, b"x" * 65536)
    for number in range(script.get("flood_lines", 0)):
        os.write(2, b"line %d\n" % number)
    if script.get("close_output"):
        os.close(1)
        os.close(2)


def load(state):
    script = state.script
    if script.get("hang_in_load"):
        return
    time.sleep(script.get("load_seconds", 0))
    if "exit_in_load" in script:
        os._exit(script["exit_in_load"])
    if script.get("kill_in_load"):
        os.kill(os.getpid(), signal.SIGKILL)
    state.ready.set()


def describe_itself(flag):
    script = read_script(os.path.abspath(__file__))
    if script.get("silent_version"):
        time.sleep(600)
    lines = [
        line for line in HELP.splitlines() if not any(name in line.replace(",", " ").split() for name in script.get("unknown_flags", []))
    ]
    devices = ["Available devices:", *script.get("devices", ["  (none)"])]
    print({"--version": "version: 1 (fake)", "--list-devices": "\n".join(devices)}.get(flag, "\n".join(lines)))


def main():
    if sys.argv[1:] in (["--version"], ["--help"], ["--list-devices"]):
        describe_itself(sys.argv[1])
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("-a", "--alias", default="model")
    parser.add_argument("-np", "--parallel", type=int, default=1)
    known, _ = parser.parse_known_args()
    script = read_script(known.model)
    trouble(script, known.model)
    server = Server(known.host, Handler) if known.host.endswith(".sock") else TcpServer((known.host, known.port), Handler)
    server.state = State(script, known.alias, known.parallel)
    threading.Thread(target=load, args=(server.state,), daemon=True).start()
    if not known.host.endswith(".sock"):
        print(f"listening on port {server.server_address[1]}", flush=True)
    server.serve_forever(poll_interval=60)


if __name__ == "__main__":
    main()
