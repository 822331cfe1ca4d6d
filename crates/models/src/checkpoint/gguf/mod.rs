//! GGUF, the one-file format of ggml and llama.cpp: from it to a folder of Hugging Face's layout, and back.
//!
//! A file is a [`header`] of [`value`]s and of where each tensor lies, then the tensors, in [`blocks`] of one of several [`Format`]s.
//! [`import`] and [`export`] are the two ways. Between them stand what both formats say in their own words: a decoder's [`sizes`] and positions, the
//! [`tensors`] that follow from them, and the [`vocabulary`].
//!
//! The layouts are those of ggml's `gguf.md` and `ggml-quants.c`. Numbers are little-endian.

pub mod blocks;

pub mod export;
pub mod header;
pub mod import;
mod pieces;
mod pre;
mod rope;
pub mod sizes;
pub mod tensors;
mod tokenizer;
pub mod value;
pub mod vocabulary;
mod write;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use colrow_tensor::{Error, Result};

use self::blocks::Format;
use self::header::{Header, Stored};
use crate::files::{self, io_error};

/// An open GGUF file, whose tensors are read on demand.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: Mutex<File>,
    /// What its header says.
    pub header: Header,
}

impl Gguf {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// A file that cannot be read; one of another format, version or byte order; a header that is not as it should be.
    pub fn open(path: &Path) -> Result<Self> {
        let file = files::open(path).map_err(|e| io_error("cannot open", &e, path))?;
        let len = file.metadata().map_err(|e| io_error("cannot read", &e, path))?.len();
        let header = Header::read(BufReader::new(&file), len).map_err(|e| e.at(path.display()))?;
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(file), header })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many tensors are stored in each format, the most frequent first.
    pub fn formats(&self) -> Vec<(Format, usize)> {
        count(self.header.tensors.values().map(|stored| stored.format))
    }

    /// Reads elements of a tensor, from `first` on, in row-major order; both `first` and their number are multiples of its block.
    ///
    /// # Errors
    /// A file that cannot be read.
    ///
    /// # Panics
    /// If they are not, or the tensor has not so many.
    pub fn read(&self, stored: &Stored, first: usize, out: &mut [f32]) -> Result<()> {
        let (block, size) = (stored.format.block(), stored.format.block_bytes());
        assert!(
            first.is_multiple_of(block) && out.len().is_multiple_of(block) && first + out.len() <= stored.elements()
        );
        let mut bytes = vec![0; out.len() / block * size];
        // each read starts by seeking, so a reader that panicked leaves nothing half done
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let start = SeekFrom::Start(stored.range.start + (first / block * size) as u64);
        let read = file.seek(start).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|e| io_error("cannot read", &e, &self.path))?;
        stored.format.decode(&bytes, out);
        Ok(())
    }
}

/// How often each format is there, the most frequent first.
fn count(formats: impl Iterator<Item = Format>) -> Vec<(Format, usize)> {
    let mut counts: Vec<(Format, usize)> = Vec::new();
    for format in formats {
        match counts.iter_mut().find(|(f, _)| *f == format) {
            Some((_, n)) => *n += 1,
            None => counts.push((format, 1)),
        }
    }
    counts.sort_by_key(|&(format, n)| (std::cmp::Reverse(n), format.name()));
    counts
}

/// `210 tensors of 4 bits (Q4_1), 61 of 32 bits (F32), 1 of 8 bits (Q8_0)`.
pub fn described(counts: &[(Format, usize)]) -> String {
    let mut words = counts.iter().enumerate().map(|(i, (format, n))| {
        let tensors = match (i, n) {
            (0, 1) => "1 tensor".to_string(),
            (0, n) => format!("{n} tensors"),
            (_, n) => n.to_string(),
        };
        format!("{tensors} of {} bits ({})", format.bits(), format.name())
    });
    let first = words.next().unwrap_or_default();
    words.fold(first, |text, word| text + ", " + &word)
}

/// Most elements that are read or written at a time; a multiple of every block.
const PIECE: usize = 1 << 16;

/// Says how far the work is: so many elements of so many.
struct Told<'a> {
    done: u64,
    of: u64,
    tell: &'a mut dyn FnMut(u64, u64),
}

impl Told<'_> {
    fn more(&mut self, elements: usize) {
        self.done += elements as u64;
        (self.tell)(self.done, self.of);
    }
}

/// What no program writes.
fn absurd(what: &str, found: impl std::fmt::Display) -> Error {
    Error::new(format!("{what}: found {found}")).hint("the file is damaged: fetch it again")
}
