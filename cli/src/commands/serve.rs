//! `racker disk serve`

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use listenfd::ListenFd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use racker_nbd::limits::{Limits, NAME_BYTES_MAX};
use racker_nbd::listen::Listener;
use racker_nbd::server::Summary;
use racker_nbd::stream::Pipes;
use racker_nbd::tls::Tls;
use racker_nbd::{Export, Server};
use serde_json::json;
use tempfile::TempDir;

use crate::exit::Exit;
use crate::exports::{Access, offer};
use crate::fault::{About, Failure, Outcome};
use crate::interrupt;
use crate::output::{human, line};
use crate::progress::ProgressArgs;
use crate::target::HowArgs;

/// The port of NBD.
const PORT: u16 = 10809;

/// Serve disks to other programs with the NBD protocol: qemu, nbdcopy, the kernel's client
///
/// Each image is an export, and so is each of its partitions (IMAGE/p2), logical volumes (IMAGE/vg/lv) and internal
/// snapshots (IMAGE@NAME). Their addresses are printed, one a line. Without --socket or --listen the socket lies in a
/// folder that only you can reach. Ends at Ctrl-C or SIGTERM: requests in flight end, and all that was written is on
/// stable storage then.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    racker disk serve --read-only boot.qcow2 --run 'nbdinfo \"$uri\"'\n  \
    racker disk serve --snapshot boot.qcow2 --run 'qemu-img info \"$uri\"'\n  \
    racker disk serve --copy-on-write changes.qcow2 boot.qcow2 --run 'qemu-img info \"$uri\"'\n  \
    psktool -u alice -p keys.psk\n  \
    racker disk serve -r --tls-psk keys.psk boot.qcow2 \\\n    \
    --run 'LOGNAME=alice nbdinfo \"$uri&tls-psk-file=keys.psk\"'")]
pub(crate) struct Serve {
    /// Disk images, compressed images, archives with a disk inside, block devices, or addresses of other NBD servers'
    /// disks (nbd://HOST/EXPORT)
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    how: HowArgs,
    /// Listen at this path; only you can reach it
    #[arg(long, value_name = "PATH", group = "where")]
    socket: Option<PathBuf>,
    /// Listen at this address of the network, at port 10809 if none is named
    #[arg(long, value_name = "ADDR[:PORT]", group = "where")]
    listen: Option<String>,
    /// Serve one client at standard input and output
    #[arg(long, group = "where", conflicts_with_all = ["run", "json"])]
    stdio: bool,
    /// With --listen: an address that other machines can reach
    #[arg(long, requires = "listen")]
    public: bool,
    /// Speak TLS, with server-cert.pem and server-key.pem of this folder
    #[arg(long, value_name = "FOLDER", group = "tls_by")]
    tls_certificates: Option<PathBuf>,
    /// With --tls-certificates: clients need a certificate that is signed by ca-cert.pem of the folder
    #[arg(long, requires = "tls_certificates")]
    tls_verify_peer: bool,
    /// Speak TLS with clients that know one of the keys in this file, a line IDENTITY:KEY each, as psktool makes it
    #[arg(long, value_name = "FILE", group = "tls_by")]
    tls_psk: Option<PathBuf>,
    /// With --tls-certificates or --tls-psk: whether clients without TLS are served as well
    #[arg(long, value_name = "WHEN", requires = "tls_by")]
    tls: Option<TlsWhen>,
    /// Let nobody write
    #[arg(short = 'r', long, conflicts_with = "snapshot")]
    read_only: bool,
    /// Throw away what clients write when the server ends
    #[arg(short = 's', long)]
    snapshot: bool,
    /// Leave the image alone and keep what clients write in this file, a qcow2 over the image that is made if it is
    /// not there, and gone on with if it is; once for each image
    #[arg(long, value_name = "FILE", conflicts_with_all = ["read_only", "snapshot"])]
    copy_on_write: Vec<PathBuf>,
    /// Let clients make the disks larger
    #[arg(long, conflicts_with_all = ["read_only", "snapshot"])]
    allow_resize: bool,
    /// Name of the export, once for each image; else the name of its file
    #[arg(short = 'n', long, value_name = "NAME")]
    name: Vec<String>,
    /// Text that clients see beside the export, once for each image; else its format and size
    #[arg(short = 'D', long, value_name = "TEXT")]
    description: Vec<String>,
    /// Most connections at a time
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().connections)]
    max_connections: usize,
    /// Cut off clients that ask for nothing for so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    idle_timeout: Option<u64>,
    /// End when the last client has left
    #[arg(long)]
    once: bool,
    /// Run a command of the shell that finds the address in $uri, and end with it
    #[arg(long, value_name = "COMMAND", conflicts_with = "once")]
    run: Option<String>,
    /// Print what is served as JSON, on one line
    #[arg(long)]
    json: bool,
}

/// For whom there is TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TlsWhen {
    /// For clients that begin it; others are served without
    On,
    /// For all: clients that do not begin it are told nothing. This is the default
    Require,
}

/// Why the server ends.
enum Event {
    Asked,
    Left,
    Ran(Option<i32>),
}

/// Where the server is reached, and what goes with it.
struct Place {
    /// As addresses of exports begin.
    base: String,
    /// As they end.
    query: String,
    listeners: Vec<Listener>,
    socket: Option<Socket>,
    /// Somebody else has opened the sockets.
    is_given: bool,
}

/// A socket's path, gone when the server is.
struct Socket {
    path: PathBuf,
    /// The private folder that it lies in.
    _folder: Option<TempDir>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Serve {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let exports = self.exports(progress)?;
        let default = (self.images.len() == 1).then_some(0);
        let limits = Limits {
            connections: self.max_connections,
            idle: self.idle_timeout.map(Duration::from_secs),
            ..Limits::default()
        };
        let tls = self.tls(progress)?;
        let mut server = Server::new(exports, default, limits, tls, move |what| progress.note(what))?;
        let (events, happened) = channel();
        let place = if self.stdio { None } else { Some(self.place(progress)?) };
        let child = match (&self.run, &place) {
            // Before signals are blocked: it shall hear them.
            (Some(command), Some(place)) => Some(start(command, &place.uri(&self.default_name(&server)))?),
            _ => None,
        };
        let asked = events.clone();
        interrupt::hear(move || drop(asked.send(Event::Asked)));
        let socket = match place {
            None => {
                self.stdio(&server, events.clone())?;
                None
            }
            Some(mut place) => {
                server.listen(std::mem::take(&mut place.listeners))?;
                // Who gave us sockets, or a command to run, knows where they are.
                if self.run.is_none() && !place.is_given {
                    match self.print(&server, &place) {
                        // Whoever has read enough of it may still be served.
                        Err(e) if e.is_broken_pipe() => {}
                        printed => printed?,
                    }
                }
                place.socket
            }
        };
        if self.once {
            let left = events.clone();
            server.when_left(move || drop(left.send(Event::Left)))?;
        }
        let status = wait(&happened, child, events)?;
        drop(socket);
        let summary = server.stop()?;
        progress.note(&said(&summary, self.read_only, self.snapshot));
        Ok(status)
    }

    fn tls(&self, progress: ProgressArgs) -> Outcome<Option<Tls>> {
        let is_optional = self.tls == Some(TlsWhen::On);
        if is_optional && self.tls_verify_peer {
            let failure = Failure::new("with --tls on everybody is served, with a certificate or without");
            return Err(failure.hint("--tls-verify-peer goes with --tls require"));
        }
        let tls = match (&self.tls_certificates, &self.tls_psk) {
            (Some(folder), _) => Tls::from_folder(folder, self.tls_verify_peer).about(folder)?,
            (None, Some(file)) => {
                let tls = Tls::from_keys(file).about(file)?;
                if fs::metadata(file).is_ok_and(|about| about.mode() & 0o044 != 0) {
                    progress.note(&format!("{}: others can read the keys", file.display()));
                }
                tls
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(if is_optional { tls.optional() } else { tls }))
    }

    fn exports(&self, progress: ProgressArgs) -> Outcome<Vec<Export>> {
        if self.name.len() > self.images.len() {
            return Err(Failure::new("there are more names than images"));
        }
        if self.description.len() > self.images.len() {
            return Err(Failure::new("there are more descriptions than images"));
        }
        if let Some(text) = self.description.iter().find(|t| t.len() > NAME_BYTES_MAX) {
            let len = text.len();
            return Err(Failure::new(format!("a description has {len} bytes, {NAME_BYTES_MAX} are allowed")));
        }
        let access = match (self.read_only, self.snapshot) {
            (true, _) => Access::Read,
            (_, true) => Access::Snapshot,
            _ => Access::Write { resize: self.allow_resize },
        };
        let (overlays, images) = (self.copy_on_write.len(), self.images.len());
        if overlays != 0 && overlays != images {
            let failure = Failure::new(format!("there are {images} images and {overlays} files to write to"));
            return Err(failure.hint("--copy-on-write FILE is typed once for each image, in their order"));
        }
        let mut all = Vec::new();
        for (i, image) in self.images.iter().enumerate() {
            let name = self.name.get(i).map(String::as_str);
            let overlay = self.copy_on_write.get(i).map(PathBuf::as_path);
            let description = self.description.get(i).map(String::as_str);
            let offer = offer(image.clone(), name, &self.how, access, overlay)?;
            all.extend(offer.described(description).all(progress)?);
        }
        Ok(all)
    }

    /// What an address names that is to be good for all images.
    fn default_name(&self, server: &Server) -> String {
        match server.exports() {
            [only, ..] if self.images.len() == 1 => only.name().into(),
            _ => String::new(),
        }
    }

    /// One client at standard input and output.
    fn stdio(&self, server: &Server, events: Sender<Event>) -> Outcome<()> {
        let copy = |fd: std::os::fd::BorrowedFd<'_>| -> Outcome<OwnedFd> { Ok(fd.try_clone_to_owned()?) };
        let stream = Pipes::new(copy(std::io::stdin().as_fd())?, copy(std::io::stdout().as_fd())?);
        Ok(server.connect(Arc::new(stream), move || drop(events.send(Event::Left)))?)
    }

    fn place(&self, progress: ProgressArgs) -> Outcome<Place> {
        if let Some(path) = &self.socket {
            return at_path(self.scheme(), path, None);
        }
        if let Some(address) = &self.listen {
            return self.at_address(address, progress);
        }
        let mut given = ListenFd::from_env();
        if given.len() > 0 {
            return activated(&mut given);
        }
        let folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|d| d.is_dir());
        let folder = folder.unwrap_or_else(std::env::temp_dir);
        let private = tempfile::Builder::new().prefix("racker-").tempdir_in(&folder).about(&folder)?;
        at_path(self.scheme(), &private.path().join("nbd.sock"), Some(private))
    }

    /// How addresses begin.
    fn scheme(&self) -> &'static str {
        if self.has_tls() { "nbds" } else { "nbd" }
    }

    fn has_tls(&self) -> bool {
        self.tls_certificates.is_some() || self.tls_psk.is_some()
    }

    fn at_address(&self, text: &str, progress: ProgressArgs) -> Outcome<Place> {
        let address = resolve(text)?;
        if !address.ip().is_loopback() {
            if !self.public {
                let failure = Failure::new(format!("other machines can reach {}", address.ip()));
                return Err(failure.hint("--public allows it; without it 127.0.0.1 and ::1 are served"));
            }
            let is_known = self.tls_verify_peer || (self.tls_psk.is_some() && self.tls != Some(TlsWhen::On));
            if !is_known {
                progress.note(&format!("everybody who reaches {address} can use the disks"));
            }
            if !self.has_tls() {
                progress.note("without --tls-certificates or --tls-psk everybody on the way can read along");
            } else if self.tls == Some(TlsWhen::On) {
                progress.note("with --tls on everybody on the way can make clients do without TLS");
            }
        }
        let listener = Listener::tcp(address).map_err(Failure::from).about(Path::new(text))?;
        let address = listener.address().unwrap_or(address);
        Ok(Place {
            base: format!("{}://{address}/", self.scheme()),
            query: String::new(),
            listeners: vec![listener],
            socket: None,
            is_given: false,
        })
    }

    fn print(&self, server: &Server, place: &Place) -> Outcome<()> {
        if self.json {
            let export = |e: &Arc<Export>| {
                json!({ "name": e.name(), "uri": place.uri(e.name()), "size": e.disk().size(),
                        "description": e.description(), "read-only": !e.disk().writable() })
            };
            let all: Vec<_> = server.exports().iter().map(export).collect();
            line(&json!({ "uri": place.uri(&self.default_name(server)), "exports": all }).to_string())?;
        } else {
            for export in server.exports() {
                line(&place.uri(export.name()))?;
            }
        }
        std::io::stdout().flush()?;
        Ok(())
    }
}

impl Place {
    /// The address of an export.
    fn uri(&self, name: &str) -> String {
        format!("{}{}{}", self.base, escape(name), self.query)
    }
}

fn at_path(scheme: &str, path: &Path, folder: Option<TempDir>) -> Outcome<Place> {
    let listener = Listener::unix(path).map_err(Failure::from).about(path)?;
    let absolute = std::path::absolute(path)?;
    let query = format!("?socket={}", escape(&absolute.to_string_lossy()));
    let socket = Some(Socket { path: absolute, _folder: folder });
    Ok(Place {
        base: format!("{scheme}+unix:///"),
        query,
        listeners: vec![listener],
        socket,
        is_given: false,
    })
}

/// Sockets that systemd, or who does as it does, has opened.
fn activated(given: &mut ListenFd) -> Outcome<Place> {
    let mut listeners = Vec::new();
    for i in 0..given.len() {
        if let Ok(Some(unix)) = given.take_unix_listener(i) {
            listeners.push(Listener::Unix(unix));
        } else if let Ok(Some(tcp)) = given.take_tcp_listener(i) {
            listeners.push(Listener::Tcp(tcp));
        } else {
            return Err(Failure::new("what this program was given by LISTEN_FDS is no socket that listens"));
        }
    }
    Ok(Place { base: String::new(), query: String::new(), listeners, socket: None, is_given: true })
}

/// The address that was typed.
fn resolve(text: &str) -> Outcome<SocketAddr> {
    let found = text.to_socket_addrs().or_else(|_| {
        let host = text.trim_start_matches('[').trim_end_matches(']');
        (host, PORT).to_socket_addrs()
    });
    let none = || Failure::new(format!("{text:?} is no address; 127.0.0.1:10809 and [::1] are"));
    found.map_err(|_| none())?.next().ok_or_else(none)
}

/// Bytes that have a meaning of their own in an address, as `%2F`.
fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/@".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn start(command: &str, uri: &str) -> Outcome<Child> {
    Ok(Command::new("sh").args(["-c", command]).env("uri", uri).spawn()?)
}

/// Waits until the server shall end; the status that the program ends with.
fn wait(happened: &Receiver<Event>, child: Option<Child>, events: Sender<Event>) -> Outcome<Exit> {
    let pid = child.as_ref().and_then(|c| i32::try_from(c.id()).ok()).map(Pid::from_raw);
    if let Some(mut child) = child {
        let wait = move || {
            let status = child.wait().ok().and_then(|s| s.code());
            let _ = events.send(Event::Ran(status));
        };
        thread::Builder::new().name("command".into()).spawn(wait)?;
    }
    match happened.recv() {
        Ok(Event::Ran(Some(0)) | Event::Left) | Err(_) => Ok(Exit::Done),
        Ok(Event::Ran(_)) => Ok(Exit::Failed),
        Ok(Event::Asked) => {
            if let Some(pid) = pid {
                let _ = kill(pid, Signal::SIGTERM);
            }
            Ok(Exit::Done)
        }
    }
}

fn said(summary: &Summary, read_only: bool, snapshot: bool) -> String {
    let Summary { connections, requests, read, written, cut_off } = *summary;
    let stable = match (read_only, snapshot) {
        (true, _) => "nothing could be written".to_string(),
        (_, true) => format!("{} written and thrown away", human(written)),
        _ => format!("{} written, and on stable storage", human(written)),
    };
    let cut =
        if cut_off > 0 { format!("; {cut_off} connections did not end in time") } else { String::new() };
    format!("served {connections} connections, {requests} requests: {} read, {stable}{cut}", human(read))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(resolve("127.0.0.1:7").unwrap(), SocketAddr::from(([127, 0, 0, 1], 7)));
        assert_eq!(resolve("127.0.0.1").unwrap().port(), PORT);
        assert_eq!(resolve("[::1]").unwrap().to_string(), "[::1]:10809");
        assert!(resolve("no where").is_err());
    }

    #[test]
    fn names_in_addresses() {
        assert_eq!(escape("a b/p1@x?&#%"), "a%20b/p1@x%3F%26%23%25");
    }
}
