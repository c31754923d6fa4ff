//! From a frame to a request that can be carried out, or to the number of an error: without any I/O.

use racker_formats::block::Span;

use crate::errno::Errno;
use crate::handshake::Replies;
use crate::limits::PAYLOAD_MAX;
use crate::wire::{CommandFlags, ExportFlags, Frame, command};

/// What a client wants, checked: spans lie inside the disk, and what they ask for was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Read {
        span: Span,
        whole: bool,
    },
    Write {
        at: u64,
        fua: bool,
    },
    Zero {
        span: Span,
        fua: bool,
        no_hole: bool,
        fast: bool,
    },
    Trim {
        span: Span,
        fua: bool,
    },
    Cache {
        span: Span,
    },
    Flush,
    /// With a payload, that says which stretch and which contexts.
    Status {
        at: u64,
        span: Option<Span>,
        one: bool,
    },
    Resize {
        size: u64,
    },
    Disconnect,
}

/// What a client and the server have agreed on, and the disk as it is now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) flags: ExportFlags,
    pub(crate) replies: Replies,
    pub(crate) has_contexts: bool,
    pub(crate) size: u64,
}

/// The flags that a command knows, but `FUA`, which all have.
fn known(command: u16, terms: &Terms) -> CommandFlags {
    match command {
        command::READ if terms.flags.contains(ExportFlags::SEND_DF) => CommandFlags::DF,
        command::WRITE if terms.replies == Replies::Extended => CommandFlags::PAYLOAD_LEN,
        command::WRITE_ZEROES => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
        command::BLOCK_STATUS if terms.flags.contains(ExportFlags::BLOCK_STATUS_PAYLOAD) => {
            CommandFlags::REQ_ONE | CommandFlags::PAYLOAD_LEN
        }
        command::BLOCK_STATUS => CommandFlags::REQ_ONE,
        _ => CommandFlags::empty(),
    }
}

/// Bytes of payload that follow a frame.
///
/// QEMU's client (10.0) leaves the flag out of extended writes, which the extension forbids, and sends the payload.
pub(crate) fn payload(frame: &Frame, replies: Replies) -> u64 {
    let is_flagged = replies == Replies::Extended && frame.flags.contains(CommandFlags::PAYLOAD_LEN);
    if is_flagged || frame.command == command::WRITE { frame.len } else { 0 }
}

/// Checks a frame.
pub(crate) fn validate(frame: &Frame, terms: &Terms) -> Result<Request, Errno> {
    let unknown = frame.flags.difference(known(frame.command, terms) | CommandFlags::FUA);
    if !unknown.is_empty() {
        return Err(Errno::Inval);
    }
    let fua = frame.flags.contains(CommandFlags::FUA);
    let has_payload = frame.flags.contains(CommandFlags::PAYLOAD_LEN);
    match frame.command {
        command::READ => {
            let whole = frame.flags.contains(CommandFlags::DF);
            let span = inside(frame, terms).map_err(|()| Errno::Inval)?;
            if span.len() > PAYLOAD_MAX.into() && (whole || terms.replies == Replies::Simple) {
                return Err(if whole { Errno::Overflow } else { Errno::Inval });
            }
            Ok(Request::Read { span, whole })
        }
        command::WRITE => {
            writable(terms)?;
            if frame.len > PAYLOAD_MAX.into() {
                return Err(Errno::Inval);
            }
            inside(frame, terms).map_err(|()| Errno::NoSpc)?;
            Ok(Request::Write { at: frame.at, fua })
        }
        command::WRITE_ZEROES => {
            writable(terms)?;
            let span = inside(frame, terms).map_err(|()| Errno::NoSpc)?;
            let no_hole = frame.flags.contains(CommandFlags::NO_HOLE);
            Ok(Request::Zero { span, fua, no_hole, fast: frame.flags.contains(CommandFlags::FAST_ZERO) })
        }
        command::TRIM => {
            writable(terms)?;
            Ok(Request::Trim { span: inside(frame, terms).map_err(|()| Errno::Inval)?, fua })
        }
        command::CACHE => Ok(Request::Cache { span: inside(frame, terms).map_err(|()| Errno::Inval)? }),
        command::FLUSH if frame.at == 0 && frame.len == 0 => Ok(Request::Flush),
        command::BLOCK_STATUS if terms.has_contexts => status(frame, terms, has_payload),
        command::RESIZE if terms.flags.contains(ExportFlags::SEND_RESIZE) => match frame.at {
            // What lies behind a new end would be lost.
            size if size < terms.size => Err(Errno::Perm),
            size => Ok(Request::Resize { size }),
        },
        command::DISC => Ok(Request::Disconnect),
        _ => Err(Errno::Inval),
    }
}

fn status(frame: &Frame, terms: &Terms, has_payload: bool) -> Result<Request, Errno> {
    let one = frame.flags.contains(CommandFlags::REQ_ONE);
    if has_payload {
        return Ok(Request::Status { at: frame.at, span: None, one });
    }
    let span = inside(frame, terms).ok().filter(|s| !s.is_empty()).ok_or(Errno::Inval)?;
    Ok(Request::Status { at: frame.at, span: Some(span), one })
}

fn writable(terms: &Terms) -> Result<(), Errno> {
    if terms.flags.contains(ExportFlags::READ_ONLY) { Err(Errno::Perm) } else { Ok(()) }
}

/// The stretch of disk that a frame speaks of.
fn inside(frame: &Frame, terms: &Terms) -> Result<Span, ()> {
    let span = Span::new(frame.at, frame.len).map_err(|_| ())?;
    if span.end() > terms.size { Err(()) } else { Ok(span) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(replies: Replies) -> Terms {
        let flags = ExportFlags::all().difference(ExportFlags::READ_ONLY);
        Terms { flags, replies, has_contexts: true, size: 1 << 40 }
    }

    fn frame(command: u16, flags: CommandFlags, at: u64, len: u64) -> Frame {
        Frame { flags, command, cookie: 1, at, len }
    }

    #[test]
    fn what_lies_past_the_end_has_the_number_of_its_command() {
        let none = CommandFlags::empty();
        let ask = |command| validate(&frame(command, none, (1 << 40) - 1, 2), &terms(Replies::Structured));
        assert_eq!(ask(command::READ), Err(Errno::Inval));
        assert_eq!(ask(command::TRIM), Err(Errno::Inval));
        assert_eq!(ask(command::WRITE), Err(Errno::NoSpc));
        assert_eq!(ask(command::WRITE_ZEROES), Err(Errno::NoSpc));
        assert_eq!(ask(command::BLOCK_STATUS), Err(Errno::Inval));
        let wraps = frame(command::READ, none, u64::MAX, 2);
        assert_eq!(validate(&wraps, &terms(Replies::Extended)), Err(Errno::Inval));
    }

    #[test]
    fn flags_belong_to_their_commands() {
        let extended = terms(Replies::Extended);
        for (command, flags, is_good) in [
            (command::READ, CommandFlags::DF | CommandFlags::FUA, true),
            (command::READ, CommandFlags::REQ_ONE, false),
            (command::READ, CommandFlags::PAYLOAD_LEN, false),
            (command::WRITE, CommandFlags::PAYLOAD_LEN, true),
            (command::WRITE, CommandFlags::empty(), true),
            (command::WRITE_ZEROES, CommandFlags::FAST_ZERO | CommandFlags::NO_HOLE, true),
            (command::TRIM, CommandFlags::NO_HOLE, false),
            (command::BLOCK_STATUS, CommandFlags::PAYLOAD_LEN | CommandFlags::REQ_ONE, true),
            (command::BLOCK_STATUS, CommandFlags::from_bits_retain(1 << 9), false),
            (99, CommandFlags::empty(), false),
        ] {
            assert_eq!(validate(&frame(command, flags, 0, 512), &extended).is_ok(), is_good, "{command}");
        }
        let compact = terms(Replies::Structured);
        assert!(validate(&frame(command::WRITE, CommandFlags::PAYLOAD_LEN, 0, 512), &compact).is_err());
        assert!(validate(&frame(command::WRITE, CommandFlags::FUA, 0, 512), &compact).is_ok());
    }

    #[test]
    fn nothing_is_written_to_what_is_read_only() {
        let terms = Terms { flags: ExportFlags::all(), ..terms(Replies::Structured) };
        for command in [command::WRITE, command::WRITE_ZEROES, command::TRIM] {
            assert_eq!(validate(&frame(command, CommandFlags::empty(), 0, 512), &terms), Err(Errno::Perm));
        }
    }

    #[test]
    fn long_requests() {
        let long = frame(command::READ, CommandFlags::DF, 0, 1 << 30);
        assert_eq!(validate(&long, &terms(Replies::Extended)), Err(Errno::Overflow));
        let long = frame(command::WRITE_ZEROES, CommandFlags::empty(), 0, 1 << 40);
        assert!(validate(&long, &terms(Replies::Extended)).is_ok());
        assert_eq!(payload(&long, Replies::Extended), 0);
        assert_eq!(payload(&frame(command::WRITE, CommandFlags::empty(), 0, 7), Replies::Simple), 7);
    }

    #[test]
    fn a_disk_only_grows() {
        let resize = |size| frame(command::RESIZE, CommandFlags::empty(), size, 0);
        assert_eq!(validate(&resize(1), &terms(Replies::Simple)), Err(Errno::Perm));
        assert!(validate(&resize(1 << 41), &terms(Replies::Simple)).is_ok());
    }
}
