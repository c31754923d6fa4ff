//! How `umount` hears how a mount ended: the kernel waits for nobody when it unmounts.
//!
//! The process of the mount listens at a socket that only its user reaches; an extended attribute of the root, which
//! is not listed, tells the path. Who connects is greeted with a line, unmounts, and gets one more line when all is
//! over: `landed` or `failed`, a space, and what to tell people. Without that line nothing is known.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::io::Errno;
use tempfile::TempDir;

use crate::fault::{About, Failure, Outcome};

/// The extended attribute of the root that has the socket's path.
const ATTRIBUTE: &str = "user.racker.socket";
/// What who connects is greeted with.
const HELLO: &str = "racker mount";
/// Before what was done.
const LANDED: &str = "landed";
/// Before something to try.
const HINT: &str = "; hint: ";
/// Before what was not done.
const FAILED: &str = "failed";

/// The side of the mount.
pub(super) struct Control {
    folder: TempDir,
    waiting: Arc<Mutex<Vec<UnixStream>>>,
}

impl Control {
    /// Listens from now on.
    pub(super) fn listen() -> Outcome<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|d| d.is_dir());
        let above = runtime.unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new().prefix("racker-").tempdir_in(&above);
        let folder =
            folder.or_else(|_| tempfile::Builder::new().prefix("racker-").tempdir()).about(&above)?;
        let waiting = Arc::<Mutex<Vec<UnixStream>>>::default();
        let control = Self { folder, waiting: Arc::clone(&waiting) };
        let listener = UnixListener::bind(control.path()).about(&control.path())?;
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

    fn path(&self) -> PathBuf {
        self.folder.path().join("mount.sock")
    }

    /// The extended attribute of the root and its value.
    pub(super) fn told(&self) -> (Vec<u8>, Vec<u8>) {
        (ATTRIBUTE.as_bytes().to_vec(), self.path().into_os_string().into_vec())
    }

    /// Tells everybody who waits how the mount ended.
    pub(super) fn tell(self, ended: &Result<String, String>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody comes any more.
        let _ = fs::remove_file(self.path());
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

/// The side of who unmounts.
pub(crate) struct Line(BufReader<UnixStream>);

impl Line {
    /// Connects to the process of the mount at `dir`; nothing if that process is gone.
    pub(crate) fn to(dir: &Path) -> Outcome<Option<Self>> {
        let mut path = [0u8; 256];
        let len = match rustix::fs::getxattr(dir, ATTRIBUTE, path.as_mut_slice()) {
            Ok(len) => len,
            Err(Errno::NOTCONN) => return Ok(None),
            Err(e) => return Err(std::io::Error::from(e)).about(dir),
        };
        let path = Path::new(std::ffi::OsStr::from_bytes(path.get(..len).unwrap_or_default()));
        let mut line = Self(BufReader::new(UnixStream::connect(path).about(path)?));
        if line.next()?.as_deref() != Some(HELLO) {
            return Err(Failure::new("what answers is no mount of racker")).about(path);
        }
        Ok(Some(line))
    }

    fn next(&mut self) -> Outcome<Option<String>> {
        let mut text = String::new();
        let read = self.0.read_line(&mut text)?;
        Ok((read > 0).then(|| text.trim_end().to_string()))
    }

    /// Waits for the end: what was done.
    pub(crate) fn end(mut self) -> Outcome<String> {
        let unknown = "the mount's process ended without a word: changes since the last landing are lost";
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
