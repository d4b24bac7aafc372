//! The real binary as a process: starting it in its own directory, waiting until it is ready,
//! signalling and killing it, reading its output.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::SOON;

/// The name of the configuration file in the process's working directory.
pub const CONFIG_FILE: &str = "taskpass.toml";

/// How to start a process. Its environment contains only `PATH`, `HOME` and added variables.
#[derive(Debug)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<String, OsString>,
    files: Vec<(PathBuf, Vec<u8>)>,
    secrets: Vec<(PathBuf, Vec<u8>)>,
    links: Vec<(PathBuf, PathBuf)>,
}

impl Launch {
    /// The `taskpass` binary with these arguments.
    pub fn taskpass<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self::program(env!("CARGO_BIN_EXE_taskpass"), arguments)
    }

    /// Any program.
    pub fn program<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: BTreeMap::new(),
            files: Vec::new(),
            secrets: Vec::new(),
            links: Vec::new(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// The text of [`CONFIG_FILE`].
    #[must_use]
    pub fn config(self, toml: impl Into<String>) -> Self {
        self.file(CONFIG_FILE, toml.into())
    }

    /// Adds a file to the process's directory.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, contents: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), contents.into()));
        self
    }

    /// Adds a file that only its owner may read.
    #[must_use]
    pub fn secret_file(mut self, path: impl Into<PathBuf>, contents: impl Into<Vec<u8>>) -> Self {
        self.secrets.push((path.into(), contents.into()));
        self
    }

    /// Adds a symbolic link to the process's directory.
    #[must_use]
    pub fn link(mut self, path: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.links.push((path.into(), target.into()));
        self
    }

    /// The same program with a standard error that is a pipe without a reader.
    #[must_use]
    pub fn with_broken_stderr(mut self) -> Self {
        let python = super::moto::python_program("python");
        let program = std::mem::replace(&mut self.program, python);
        let own: [OsString; 3] = ["-c".into(), BREAK_STDERR.into(), program.into_os_string()];
        drop(self.arguments.splice(0..0, own));
        self
    }

    /// Starts it in a new directory.
    pub fn spawn(self) -> Process {
        let dir = tempfile::Builder::new()
            .prefix("taskpass-it-")
            .tempdir()
            .unwrap();
        self.write_files(dir.path());
        let child = self.start(dir.path());
        Process {
            launch: self,
            dir,
            child,
            status: None,
        }
    }

    /// Runs it until it ends, which must be within [`SOON`].
    pub fn run(self) -> Ended {
        let mut process = self.spawn();
        let status = process.wait(SOON);
        Ended {
            status,
            stdout: process.stdout(),
            stderr: process.stderr(),
        }
    }

    fn write_files(&self, dir: &Path) {
        for (path, contents) in &self.files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        for (path, contents) in &self.secrets {
            let path = dir.join(path);
            fs::write(&path, contents).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        for (path, target) in &self.links {
            std::os::unix::fs::symlink(target, dir.join(path)).unwrap();
        }
    }

    fn start(&self, dir: &Path) -> Child {
        let log = |name: &str| {
            let mut options = File::options();
            let file = options.create(true).append(true).open(dir.join(name));
            Stdio::from(file.unwrap())
        };
        Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", dir)
            .envs(&self.environment)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log(STDOUT))
            .stderr(log(STDERR))
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.program.display()))
    }
}

/// Python program that replaces standard error by a pipe without a reader, and itself by the
/// program that its arguments name.
const BREAK_STDERR: &str = "import os, sys
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 2)
os.execv(sys.argv[1], sys.argv[1:])";

const STDOUT: &str = "stdout.log";
const STDERR: &str = "stderr.log";

/// The result of a process that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The exit code; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Signal {
    /// Freezes the process (SIGSTOP).
    Stop,
    /// Continues a frozen process.
    Cont,
    /// Asks it to end.
    Term,
    /// Asks it to end, as Ctrl-C does.
    Int,
    /// Asks it to reload its files.
    Hup,
    /// Ends it at once.
    Kill,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "STOP",
            Self::Cont => "CONT",
            Self::Term => "TERM",
            Self::Int => "INT",
            Self::Hup => "HUP",
            Self::Kill => "KILL",
        }
    }
}

/// A started process. It is killed and reaped when dropped. If the test fails, its output is shown.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    dir: TempDir,
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its directory, with its configuration, its data and its output.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its standard output so far, over all its starts.
    pub fn stdout(&self) -> String {
        self.log(STDOUT)
    }

    /// Its standard error so far, over all its starts.
    pub fn stderr(&self) -> String {
        self.log(STDERR)
    }

    fn log(&self, name: &str) -> String {
        let bytes = fs::read(self.dir.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `/readyz` at `address` answers 200. Fails if the process ends before that, or
    /// after [`SOON`].
    pub fn wait_ready(&mut self, address: SocketAddr) {
        self.wait_for(address, "/readyz");
    }

    /// Waits until it answers at all, ready or not.
    pub fn wait_alive(&mut self, address: SocketAddr) {
        self.wait_for(address, "/livez");
    }

    fn wait_for(&mut self, address: SocketAddr, path: &str) {
        let begin = Instant::now();
        loop {
            let last = probe(address, path);
            if last == Some(200) {
                return;
            }
            if let Some(status) = self.ended() {
                panic!("it ended before it was ready: {status}");
            }
            assert!(
                begin.elapsed() < SOON,
                "not ready after {SOON:?}; the last answer was {last:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `text` is in its output, on either stream.
    pub fn wait_for_output(&mut self, text: &str) {
        super::wait_until(&format!("{text:?} in the output"), SOON, || {
            self.stdout().contains(text) || self.stderr().contains(text)
        });
    }

    pub fn signal(&self, signal: Signal) {
        assert!(
            self.status.is_none(),
            "the process has ended, so its id may belong to another"
        );
        let status = Command::new("kill")
            .args(["-s", signal.name(), "--"])
            .arg(self.pid().to_string())
            .status()
            .unwrap();
        assert!(status.success(), "kill -{}: {status}", signal.name());
    }

    /// Its exit status; `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status
    }

    /// Waits until it has ended.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        super::wait_until("the process ends", deadline, || self.ended().is_some());
        self.status.unwrap()
    }

    /// Sends SIGTERM, and waits until it has ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::Term);
        self.wait(SOON)
    }

    /// Kills it, even if it is frozen, and reaps it.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            self.child.kill().unwrap();
            self.status = Some(self.child.wait().unwrap());
        }
    }

    /// Starts it again in the same directory, after it has ended.
    pub fn restart(&mut self) {
        assert!(self.ended().is_some(), "the process is still running");
        self.child = self.launch.start(self.dir.path());
        self.status = None;
    }

    /// Starts another launch in the same directory, after it has ended.
    pub fn restart_as(&mut self, launch: Launch) {
        assert!(self.ended().is_some(), "the process is still running");
        launch.write_files(self.dir.path());
        self.launch = launch;
        self.restart();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let program = self.launch.program.display();
            eprintln!("---- {program} printed ----\n{}", self.stdout());
            eprintln!("---- and to standard error ----\n{}", self.stderr());
        }
    }
}

/// Sends one request without a runtime or HTTP client, and returns the status.
fn probe(address: SocketAddr, path: &str) -> Option<u16> {
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).ok()?;
    super::http::raw_status(&answer)
}

mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::process::ExitStatusExt;

    fn shell(script: &str) -> Launch {
        Launch::program("/bin/sh", ["-c", script])
    }

    #[test]
    fn the_binary_runs() {
        Launch::taskpass(["--version"]).run();
    }

    #[test]
    fn it_has_its_own_directory_and_only_what_it_is_given() {
        let ended = shell("cat taskpass.toml sub/file; env; echo oops >&2; exit 3")
            .config("[http]\n")
            .file("sub/file", "contents\n")
            .env("TASKPASS_X", "y")
            .run();
        assert_eq!(ended.code(), Some(3));
        assert!(ended.stdout.starts_with("[http]\ncontents\n"));
        assert!(ended.stdout.contains("TASKPASS_X=y\n"));
        assert!(!ended.stdout.contains("CARGO"));
        assert_eq!(ended.stderr, "oops\n");
    }

    #[test]
    fn readiness_is_waited_for_and_an_early_end_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for status in ["503 Unavailable", "200 OK"] {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        shell("exec sleep 60").spawn().wait_ready(address);
        server.join().unwrap();

        let early = std::panic::catch_unwind(|| shell("exit 4").spawn().wait_ready(address));
        let message = early.unwrap_err();
        assert!(
            message
                .downcast_ref::<String>()
                .unwrap()
                .contains("exit status: 4")
        );
    }

    #[test]
    fn signals_arrive() {
        let mut polite =
            shell("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done").spawn();
        polite.wait_for_output("up");
        assert_eq!(polite.terminate().code(), Some(5));
        assert_eq!(polite.stdout(), "up\nbye\n");
        polite.restart();
        super::super::wait_until("the process is running again", SOON, || {
            polite.stdout() == "up\nbye\nup\n"
        });

        polite.kill();
        polite.restart_as(shell("cat taskpass.toml; exec sleep 60").config("new"));
        polite.wait_for_output("new");

        polite.signal(Signal::Stop);
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", polite.pid())).unwrap();
            let (_, after_name) = stat.rsplit_once(") ").unwrap();
            after_name.chars().next().unwrap()
        };
        super::super::wait_until("the process is frozen", SOON, || state() == 'T');
        polite.signal(Signal::Cont);
        super::super::wait_until("the process continues", SOON, || state() != 'T');
        polite.signal(Signal::Stop);
        polite.kill();
        assert_eq!(polite.status.unwrap().signal(), Some(9));
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let process = shell("exec sleep 60").spawn();
        let pid = process.pid();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
