//! Standard output and standard input as disks: one is written from beginning to end, the other is kept in a
//! temporary file without a name.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Mutex;

use crate::block::{BlockDevice, Caps, Disk, FileDevice, Span, Support};
use crate::error::{Common, Fault, Kind, Result};
use crate::wire::{data_runs, len64};

/// Zeroes that are written at a time, and bytes that are read at a time.
const PIECE: usize = 256 << 10;
/// Blocks of this many bytes stay holes when they are zero.
const BLOCK: usize = 4096;

/// What a pipe cannot do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipeFault {
    /// A write before what is gone already.
    #[error("byte {at} is to be written, but {gone} bytes went down the pipe already")]
    Back {
        /// Where.
        at: u64,
        /// How far the pipe is.
        gone: u64,
    },
    /// A pipe is only written.
    #[error("a pipe cannot be read back")]
    Read,
}

impl Fault for PipeFault {
    fn kind(&self) -> Kind {
        Kind::Unsupported
    }
}

/// A device that takes writes in order and passes them on; what is left out between them goes as zeroes.
pub struct Pipe {
    state: Mutex<State>,
}

struct State {
    out: Box<dyn Write + Send>,
    /// Bytes that are gone.
    gone: u64,
    /// Size of the file that this would be.
    size: u64,
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pipe")
    }
}

impl State {
    /// Writes zeroes up to `at`.
    fn fill(&mut self, at: u64) -> Result<()> {
        let zeroes = vec![0; PIECE.min(usize::try_from(at.saturating_sub(self.gone)).unwrap_or(PIECE))];
        while self.gone < at {
            let len = usize::try_from(at.saturating_sub(self.gone)).unwrap_or(PIECE).min(PIECE);
            self.out.write_all(zeroes.get(..len).unwrap_or(&zeroes))?;
            self.gone = self.gone.saturating_add(len64(len));
        }
        Ok(())
    }
}

impl Pipe {
    /// A device whose bytes go to `out`.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        Self { state: Mutex::new(State { out: Box::new(out), gone: 0, size: 0 }) }
    }

    /// Everything is written: zeroes up to the end follow.
    pub fn finish(&self) -> Result<()> {
        let mut state = self.state.lock().map_err(|_| Common::Poisoned)?;
        let size = state.size;
        state.fill(size)?;
        Ok(state.out.flush()?)
    }
}

impl BlockDevice for Pipe {
    fn size(&self) -> u64 {
        self.state.lock().map_or(0, |s| s.size)
    }

    fn caps(&self) -> Caps {
        Caps { write: true, zero: Support::Native, resize: true, ..Caps::READ_ONLY }
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(PipeFault::Read.into())
    }

    fn flush(&self) -> Result<()> {
        Ok(self.state.lock().map_err(|_| Common::Poisoned)?.out.flush()?)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        let mut state = self.state.lock().map_err(|_| Common::Poisoned)?;
        if at < state.gone {
            return Err(PipeFault::Back { at, gone: state.gone }.into());
        }
        state.fill(at)?;
        state.out.write_all(data)?;
        state.gone = state.gone.saturating_add(len64(data.len()));
        Ok(())
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        let mut state = self.state.lock().map_err(|_| Common::Poisoned)?;
        if span.start() < state.gone {
            return Err(PipeFault::Back { at: span.start(), gone: state.gone }.into());
        }
        state.fill(span.end())
    }

    fn resize(&self, size: u64) -> Result<()> {
        let mut state = self.state.lock().map_err(|_| Common::Poisoned)?;
        if size < state.gone {
            return Err(PipeFault::Back { at: size, gone: state.gone }.into());
        }
        state.size = size;
        Ok(())
    }
}

/// An empty, writable file without a name in `folder`, for what has to be complete before it is passed on.
pub fn scratch(folder: &Path) -> Result<Disk> {
    // It is gone after a power cut, whatever was promised about it.
    Ok(Disk::new(FileDevice::new(tempfile::tempfile_in(folder)?, true)?.durable(false)))
}

/// What comes from `input` as a read-only disk: a file or a block device as it is, anything else by way of a
/// temporary file in `folder` that has no name. Zeroes take no room there.
pub fn from_input(input: File, folder: &Path) -> Result<Disk> {
    let kind = input.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(Disk::new(FileDevice::new(input, false)?).read_only());
    }
    let kept = tempfile::tempfile_in(folder)?;
    let (mut piece, mut at) = (vec![0; PIECE], 0u64);
    loop {
        let mut len = 0usize;
        // A pipe gives what it has: pieces are filled, so that zeroes are found whole.
        while let Some(rest) = piece.get_mut(len..).filter(|r| !r.is_empty()) {
            match (&input).read(rest) {
                Ok(0) => break,
                Ok(n) => len = len.saturating_add(n),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let data = piece.get(..len).unwrap_or_default();
        for run in data_runs(data, BLOCK) {
            let to = at.saturating_add(len64(run.start));
            kept.write_all_at(data.get(run).unwrap_or_default(), to)?;
        }
        at = at.saturating_add(len64(len));
        if len < PIECE {
            break;
        }
    }
    kept.set_len(at)?;
    Ok(Disk::new(FileDevice::new(kept, false)?).read_only())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn gaps_are_zeroes_and_nothing_goes_back() {
        let out = Shared::default();
        let pipe = Arc::new(Pipe::new(out.clone()));
        let disk = Disk::from_arc(pipe.clone());
        disk.resize(1000).unwrap();
        disk.write_at(10, &[1; 5]).unwrap();
        disk.write_at(20, &[2; 5]).unwrap();
        assert!(disk.write_at(24, &[3]).is_err());
        assert!(disk.resize(20).is_err());
        pipe.finish().unwrap();
        let mut want = vec![0; 1000];
        want[10..15].fill(1);
        want[20..25].fill(2);
        assert_eq!(*out.0.lock().unwrap(), want);
    }
}
