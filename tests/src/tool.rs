//! Other programs: run, watched, and their failures told in full.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A program about to run.
#[derive(Debug)]
pub struct Tool {
    command: Command,
    input: Vec<u8>,
}

/// What a program did.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its exit status; -1 if a signal ended it.
    pub status: i32,
    /// Its standard output.
    pub out: Vec<u8>,
    /// Its standard error.
    pub err: String,
    told: String,
}

/// A foreign program, which [`setup.sh`](../../setup.sh) has installed.
pub fn tool(program: impl AsRef<OsStr>) -> Tool {
    let mut command = Command::new(program);
    // Programs of administrators are not in everyone's path.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    Tool { command, input: Vec::new() }
}

/// The `racker` under test.
pub fn racker() -> Tool {
    tool(binary())
}

/// The same, with signals as at a terminal: what a shell runs in the background inherits some as ignored.
pub fn racker_at_terminal() -> Tool {
    tool("env").arg("--default-signal=HUP,INT,TERM").arg(binary())
}

/// Where the `racker` under test lies: what `$RACKER` names, else what cargo builds now.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("RACKER") {
            return PathBuf::from(path);
        }
        // This test runs from TARGET/PROFILE/deps; an integration test's `CARGO_BIN_EXE_` reaches its own package only.
        let me = std::env::current_exe().expect("a running program has a path");
        let profile = me.parent().and_then(Path::parent).expect("cargo's layout");
        let mut args = vec!["build", "--quiet", "--package", "racker-cli"];
        if profile.ends_with("release") {
            args.push("--release");
        }
        let target = profile.parent().expect("cargo's layout");
        let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let mut cargo =
            tool(env!("CARGO")).args(args).dir(Path::new(workspace)).env("CARGO_TARGET_DIR", target);
        // What cargo tells the tests of their package would have crates built again that look at theirs (ring).
        for (key, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|own| key.as_bytes().starts_with(own.as_bytes()))
            {
                cargo.command.env_remove(key);
            }
        }
        cargo.ok();
        profile.join("racker")
    })
}

impl Tool {
    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// Runs it in this folder.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Gives it this to read.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Runs it to its end. An image that is in use is waited for, for a moment: what another thread starts holds copies of
    /// the locks of this process until it has become another program.
    pub fn run(mut self) -> Ran {
        for _ in 0..20 {
            let ran = self.once();
            let busy = ["another program is using this image", "Is another process using the image"];
            if ran.status == 0 || !busy.iter().any(|busy| ran.err.contains(busy)) {
                return ran;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        self.once()
    }

    fn once(&mut self) -> Ran {
        let told = self.told();
        let missing = |e| panic!("{told}: {e}; tests/setup.sh installs what the tests need");
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(missing);
        let mut pipe = child.stdin.take().expect("piped");
        let input = self.input.clone();
        let feeder = std::thread::spawn(move || {
            // A program that does not want all of it is no failure of the test.
            let _ = pipe.write_all(&input);
        });
        let done = child.wait_with_output().expect("a child that can be waited for");
        feeder.join().expect("the feeder does not panic");
        Ran {
            status: done.status.code().unwrap_or(-1),
            out: done.stdout,
            err: String::from_utf8_lossy(&done.stderr).into_owned(),
            told,
        }
    }

    /// Runs it; anything but success is a panic. Returns its standard output.
    pub fn ok(self) -> String {
        self.run().ok()
    }

    /// Starts it and leaves it running.
    pub fn spawn(mut self) -> std::process::Child {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program that starts")
    }

    fn told(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        words.collect::<Vec<_>>().join(&OsString::from(" ")).to_string_lossy().into_owned()
    }
}

impl Ran {
    /// Its standard output; anything but success is a panic.
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{self}");
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// It failed as racker fails: status 1, one line that begins with `racker:`, then at most hints.
    pub fn failed(&self) -> &str {
        assert_eq!(self.status, 1, "{self}");
        self.told_plainly();
        &self.err
    }

    /// What it said on standard error is one line of racker's, with hints and notes below.
    pub fn told_plainly(&self) {
        let mut lines = self.err.lines();
        let first = lines.find(|l| !l.starts_with("note:")).unwrap_or_default();
        assert!(first.starts_with("racker: "), "{self}");
        assert!(lines.all(|l| l.starts_with("hint:") || l.starts_with("        ")), "{self}");
        assert!(!self.err.contains("panicked"), "{self}");
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let out = String::from_utf8_lossy(&self.out[..self.out.len().min(4000)]).into_owned();
        write!(f, "{}: status {}\n{}{out}", self.told, self.status, self.err)
    }
}
