//! Writing a GGUF file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use colrow_tensor::Result;

use super::blocks::Format;
use super::header::{ALIGNMENT, MAGIC};
use super::value::{List, Metadata, Value};
use crate::atomic::write_file_atomic;
use crate::checkpoint::safetensors::Pieces;
use crate::files::io_error;

/// A tensor to be written.
pub(super) struct Written<'a> {
    pub(super) name: &'a str,
    /// Row-major; its rows are whole blocks of the format.
    pub(super) shape: &'a [usize],
    pub(super) format: Format,
    /// Its numbers, in pieces of whole blocks.
    pub(super) from: &'a dyn Pieces,
}

impl Written<'_> {
    fn bytes(&self) -> u64 {
        let elements: usize = self.shape.iter().product();
        (elements / self.format.block() * self.format.block_bytes()) as u64
    }
}

/// Writes a file of version 3, or leaves none. Gives its length.
pub(super) fn write(path: &Path, metadata: &Metadata, tensors: &[Written<'_>]) -> Result<u64> {
    let mut head = header(metadata, tensors);
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    let mut len = head.len() as u64;
    write_file_atomic(path, |file| {
        let mut body = || {
            let mut out = BufWriter::new(&mut *file);
            out.write_all(&head)?;
            tensors.iter().try_for_each(|tensor| write_tensor(&mut out, tensor))?;
            out.flush()
        };
        body().map_err(|e| io_error("cannot write", &e, path))
    })?;
    len += tensors.iter().map(|tensor| tensor.bytes().next_multiple_of(ALIGNMENT)).sum::<u64>();
    Ok(len)
}

fn write_tensor(out: &mut BufWriter<&mut File>, tensor: &Written<'_>) -> io::Result<()> {
    let mut bytes = Vec::new();
    tensor.from.pieces(&mut |numbers| {
        bytes.clear();
        if !tensor.format.encode(numbers, &mut bytes) {
            let (name, format) = (tensor.name, tensor.format.name());
            return Err(io::Error::other(format!("{name} has a number that is too large for {format}, or is none")));
        }
        out.write_all(&bytes)
    })?;
    let len = tensor.bytes();
    out.write_all(&vec![0; (len.next_multiple_of(ALIGNMENT) - len) as usize])
}

/// The file's bytes up to the data, not yet aligned.
pub(super) fn header(metadata: &Metadata, tensors: &[Written<'_>]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.0.len() as u64).to_le_bytes());
    for (key, value) in &metadata.0 {
        text(&mut out, key);
        value_bytes(&mut out, value);
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        text(&mut out, tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&size| out.extend((size as u64).to_le_bytes()));
        out.extend(tensor.format.number().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn value_bytes(out: &mut Vec<u8>, value: &Value) {
    let mut kind = |kind: u32| out.extend(kind.to_le_bytes());
    match value {
        // the widths that llama.cpp asks for
        Value::Unsigned(n) => match u32::try_from(*n) {
            Ok(n) => {
                kind(4);
                out.extend(n.to_le_bytes());
            }
            Err(_) => {
                kind(10);
                out.extend(n.to_le_bytes());
            }
        },
        Value::Signed(n) => match i32::try_from(*n) {
            Ok(n) => {
                kind(5);
                out.extend(n.to_le_bytes());
            }
            Err(_) => {
                kind(11);
                out.extend(n.to_le_bytes());
            }
        },
        Value::F32(x) => {
            kind(6);
            out.extend(x.to_le_bytes());
        }
        Value::Bool(x) => {
            kind(7);
            out.push((*x).into());
        }
        Value::Text(x) => {
            kind(8);
            text(out, x);
        }
        Value::List(list) => {
            kind(9);
            list_bytes(out, list);
        }
        Value::F64(x) => {
            kind(12);
            out.extend(x.to_le_bytes());
        }
    }
}

fn list_bytes(out: &mut Vec<u8>, list: &List) {
    let mut start = |kind: u32, len: usize| {
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match list {
        List::Unsigned(list) if list.iter().all(|&n| u32::try_from(n).is_ok()) => {
            start(4, list.len());
            list.iter().for_each(|&n| out.extend((n as u32).to_le_bytes()));
        }
        List::Unsigned(list) => {
            start(10, list.len());
            list.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        List::Signed(list) if list.iter().all(|&n| i32::try_from(n).is_ok()) => {
            start(5, list.len());
            list.iter().for_each(|&n| out.extend((n as i32).to_le_bytes()));
        }
        List::Signed(list) => {
            start(11, list.len());
            list.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        List::F32(list) => {
            start(6, list.len());
            list.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        List::Bools(list) => {
            start(7, list.len());
            out.extend(list.iter().map(|&x| u8::from(x)));
        }
        List::Texts(list) => {
            start(8, list.len());
            list.iter().for_each(|x| text(out, x));
        }
        List::Lists(list) => {
            start(9, list.len());
            list.iter().for_each(|x| list_bytes(out, x));
        }
        List::F64(list) => {
            start(12, list.len());
            list.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
    }
}
