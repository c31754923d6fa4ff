//! Replies as bytes.

use crate::errno::Errno;
use crate::handshake::Replies;
use crate::wire::{
    EXTENDED_REPLY_MAGIC, Frame, Put, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, command,
};

/// The header of a chunk with `len` bytes of payload.
pub(crate) fn put_chunk(out: &mut Vec<u8>, replies: Replies, frame: &Frame, kind: u16, done: bool, len: u64) {
    let flags = if done { chunk::DONE } else { 0 };
    let is_extended = replies == Replies::Extended;
    out.put32(if is_extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC });
    out.put16(flags);
    out.put16(kind);
    out.put64(frame.cookie);
    if is_extended {
        out.put64(frame.at);
        out.put64(len);
    } else {
        // Chunks are pieces, far below 4 GiB.
        out.put32(u32::try_from(len).unwrap_or(u32::MAX));
    }
}

/// A reply without data.
pub(crate) fn put_done(out: &mut Vec<u8>, replies: Replies, frame: &Frame) {
    if replies == Replies::Extended {
        put_chunk(out, replies, frame, chunk::NONE, true, 0);
    } else {
        put_simple(out, frame, 0);
    }
}

/// The header of a simple reply.
pub(crate) fn put_simple(out: &mut Vec<u8>, frame: &Frame, error: u32) {
    out.put32(SIMPLE_REPLY_MAGIC);
    out.put32(error);
    out.put64(frame.cookie);
}

/// A reply that says why there is no other.
pub(crate) fn put_error(out: &mut Vec<u8>, replies: Replies, frame: &Frame, error: Errno) {
    let has_data = matches!(frame.command, command::READ | command::BLOCK_STATUS);
    match replies {
        Replies::Simple => put_simple(out, frame, error.number()),
        Replies::Structured if !has_data => put_simple(out, frame, error.number()),
        _ => {
            let text = error.text().as_bytes();
            let len = u16::try_from(text.len()).unwrap_or_default();
            put_chunk(out, replies, frame, chunk::ERROR, true, u64::from(len).saturating_add(6));
            out.put32(error.number());
            out.put16(len);
            out.extend_from_slice(text);
        }
    }
}

/// The last chunk of a read that failed at `at`.
pub(crate) fn put_error_at(out: &mut Vec<u8>, replies: Replies, frame: &Frame, error: Errno, at: u64) {
    let text = error.text().as_bytes();
    let len = u16::try_from(text.len()).unwrap_or_default();
    put_chunk(out, replies, frame, chunk::ERROR_OFFSET, true, u64::from(len).saturating_add(14));
    out.put32(error.number());
    out.put16(len);
    out.extend_from_slice(text);
    out.put64(at);
}
