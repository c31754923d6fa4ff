//! How `umount` and `detach` hear how a process in the background ended: the kernel waits for nobody.
//!
//! The process listens at a socket that only its user reaches. Who connects is greeted with a line, ends what there is
//! to end, and gets one more line when all is over: `landed` or `failed`, a space, and what to tell people. Without that
//! line nothing is known.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tempfile::TempDir;

use crate::fault::{About, Failure, Outcome};

/// What who connects is greeted with.
const HELLO: &str = "racker";
/// Before what was done.
const LANDED: &str = "landed";
/// Before something to try.
const HINT: &str = "; hint: ";
/// Before what was not done.
const FAILED: &str = "failed";

/// The side of the process in the background.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    /// The private folder that it lies in.
    _folder: Option<TempDir>,
    waiting: Arc<Mutex<Vec<UnixStream>>>,
}

impl Control {
    /// Listens from now on, in a folder of its own.
    pub(crate) fn listen() -> Outcome<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|d| d.is_dir());
        let above = runtime.unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new().prefix("racker-").tempdir_in(&above);
        let folder =
            folder.or_else(|_| tempfile::Builder::new().prefix("racker-").tempdir()).about(&above)?;
        Self::bind(folder.path().join("control.sock"), Some(folder))
    }

    /// Listens at a path that others know, in a folder that nobody else gets into.
    pub(crate) fn listen_at(path: PathBuf) -> Outcome<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).about(folder)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).about(folder)?;
        }
        // One that a process left which was killed.
        let _ = fs::remove_file(&path);
        Self::bind(path, None)
    }

    fn bind(path: PathBuf, folder: Option<TempDir>) -> Outcome<Self> {
        let waiting = Arc::<Mutex<Vec<UnixStream>>>::default();
        let listener = UnixListener::bind(&path).about(&path)?;
        let control = Self { path, _folder: folder, waiting: Arc::clone(&waiting) };
        let greet = move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut all = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if writeln!(stream, "{HELLO}").is_ok() {
                    all.push(stream);
                }
            }
        };
        thread::Builder::new().name("control".into()).spawn(greet)?;
        Ok(control)
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Tells everybody who waits how it ended.
    pub(crate) fn tell(self, ended: &Result<String, String>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody comes any more.
        let _ = fs::remove_file(&self.path);
        let (word, text) = match ended {
            Ok(text) => (LANDED, text),
            Err(text) => (FAILED, text),
        };
        for mut stream in waiting.drain(..) {
            // Who went away wants to know nothing.
            let text = text.trim_end().replace("\nhint: ", HINT);
            let _ = writeln!(stream, "{word} {}", crate::clean::clean(&text));
        }
    }
}

/// The side of who ends it.
#[derive(Debug)]
pub(crate) struct Line(BufReader<UnixStream>);

impl Line {
    /// Connects to the process that listens at `path`.
    pub(crate) fn to(path: &Path) -> Outcome<Self> {
        let mut line = Self(BufReader::new(UnixStream::connect(path).about(path)?));
        if line.next()?.as_deref() != Some(HELLO) {
            return Err(Failure::new("what answers is no process of racker")).about(path);
        }
        Ok(line)
    }

    fn next(&mut self) -> Outcome<Option<String>> {
        let mut text = String::new();
        let read = self.0.read_line(&mut text)?;
        Ok((read > 0).then(|| text.trim_end().to_string()))
    }

    /// Waits for the end: what was done. `unknown` is what to say where the process ends without a word.
    pub(crate) fn end(mut self, unknown: &str) -> Outcome<String> {
        let said = self.next()?.ok_or_else(|| Failure::new(unknown))?;
        match said.split_once(' ') {
            Some((LANDED, text)) => Ok(text.into()),
            Some((FAILED, text)) => Err(match text.split_once(HINT) {
                Some((text, hint)) => Failure::new(text).hint(hint),
                None => Failure::new(text),
            }),
            _ => Err(Failure::new(unknown)),
        }
    }
}
