//! Programs at a terminal of their own, with a user who types.

use serde_json::Value;

use super::moto::python_program;
use super::process::Launch;

/// Python program that runs a program at a new terminal, performs the user's steps, and prints the
/// terminal's output and the program's exit code.
const PERSON: &str = r#"
import json, os, pty, re, select, signal, sys, time
steps = json.loads(sys.argv[1])
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
seen = ""
def read(seconds):
    global seen
    if select.select([terminal], [], [], seconds)[0]:
        try:
            seen += os.read(terminal, 65536).decode(errors="replace")
            return True
        except OSError:
            return False
    return True
def until(condition, kind):
    deadline = time.monotonic() + 50
    while not condition():
        if not read(0.05) or time.monotonic() > deadline:
            sys.exit("no %s in: %s" % (kind, seen))
def state():
    command = re.findall(r"up (\d+)", seen)[-1]
    return open("/proc/%s/stat" % command).read().rsplit(") ", 1)[1][0]
read_from = 0
for kind, value in steps:
    if kind == "wait":
        until(lambda: value in seen[read_from:], value)
        read_from += seen[read_from:].index(value) + len(value)
    elif kind == "type":
        os.write(terminal, value.encode())
    elif kind == "signal":
        os.kill(pid, getattr(signal, "SIG" + value))
    elif kind == "file":
        open(value, "w").close()
    elif kind == "state":
        until(lambda: state() in value, "state " + value)
    elif kind == "holder":
        # The process group in the foreground: the shell's own, which was started here, or a job's.
        until(lambda: (os.tcgetpgrp(terminal) == pid) == (value == "bash"), "holder " + value)
    else:
        sys.exit("no such step: " + kind)
while read(60):
    pass
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(seen)
print("exit=%d" % status)
"#;

/// Runs `program` at a new terminal, where a user does `steps`: pairs of a kind and a value.
/// Standard output has the terminal's text, and after `exit=` the program's exit code.
pub fn launch(program: &[String], steps: &Value) -> Launch {
    let person = ["person.py".to_owned(), steps.to_string()];
    Launch::program(python_program("python"), person.iter().chain(program))
        .file("person.py", PERSON)
        .env("TERM", "dumb")
}
