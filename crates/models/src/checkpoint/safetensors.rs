//! Writing safetensors files. Reading them is `weights`'s.

use std::cmp::Reverse;
use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use colrow_tensor::{Coded, DType, Element, Error, Result, Tensor};
use half::{bf16, f16};
pub use safetensors::Dtype;
use serde_json::{Map, json};

use super::weights::{CHUNK, Weights, read_header};
use crate::atomic::write_file_atomic;
use crate::files::{io_error, shape_text};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Saved<'a> {
    /// Its key in the file.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    /// As many elements as the shape says.
    pub data: Data<'a>,
}

/// The elements of a [`Saved`] tensor.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Bytes.
    U8(&'a [u8]),
    /// Elements of a tensor of f32 or u8, from `first` on: read from its device part by part.
    On {
        /// The tensor.
        of: &'a Tensor,
        /// The first element.
        first: usize,
        /// Their number.
        len: usize,
    },
    /// A tensor of another file, as [`Weights::read_parts`] reads it.
    Stored {
        /// The file.
        weights: &'a Weights,
        /// The tensor's name there.
        name: &'a str,
        /// Its elements.
        len: usize,
    },
    /// What is read or made piece by piece.
    Pieces {
        /// What gives the pieces.
        from: &'a dyn Pieces,
        /// Their elements, all together.
        len: usize,
        /// F32, F16 or BF16: as they are written.
        dtype: Dtype,
    },
    /// What [`fill`] writes later: room in a file that [`reserve`] makes.
    Room {
        /// The elements' number.
        len: usize,
        /// F32 or U8.
        dtype: Dtype,
    },
    /// The numbers of a matrix in codes, from row `first` on.
    Coded {
        /// The matrix.
        of: &'a Coded,
        /// The first row.
        first: usize,
        /// Their number.
        len: usize,
        /// F32 or BF16: as they are written.
        dtype: Dtype,
    },
}

/// The numbers of a tensor, handed on piece by piece, so that they need not be held.
pub trait Pieces: fmt::Debug {
    /// Hands all elements in row-major order to `each`, as few or many at a time as suits.
    ///
    /// # Errors
    /// What `each` gives, and then nothing more is handed on; elements that cannot be read.
    fn pieces(&self, each: &mut dyn FnMut(&[f32]) -> io::Result<()>) -> io::Result<()>;
}

impl Data<'_> {
    fn len(&self) -> usize {
        match self {
            Data::F32(x) => x.len(),
            Data::U8(x) => x.len(),
            Data::On { len, .. }
            | Data::Stored { len, .. }
            | Data::Room { len, .. }
            | Data::Coded { len, .. }
            | Data::Pieces { len, .. } => *len,
        }
    }

    pub(super) fn dtype(&self) -> Dtype {
        match self {
            Data::F32(_) | Data::Stored { .. } => Dtype::F32,
            Data::U8(_) => Dtype::U8,
            Data::On { of, .. } if of.dtype() == DType::U8 => Dtype::U8,
            Data::On { .. } => Dtype::F32,
            Data::Pieces { dtype, .. } | Data::Room { dtype, .. } | Data::Coded { dtype, .. } => *dtype,
        }
    }
}

/// Writes one safetensors file, in place of an old one only when it is whole and on the disk.
///
/// Data goes to the file in small pieces, so this needs no second copy of it. The metadata says `"format": "pt"` (`transformers`
/// reads no file without it) and what `metadata` adds.
pub fn write(path: &Path, tensors: &[Saved<'_>], metadata: &[(&str, &str)]) -> Result<()> {
    let (header, order) = layout(tensors, metadata).map_err(|e| e.at(path.display()))?;
    write_file_atomic(path, |file| {
        write_to(file, &header, &order).map_err(|e| io_error("cannot write", &e, path))?;
        let copied = |data: &Data<'_>| match data {
            Data::Stored { weights, .. } => weights.check_unchanged(),
            _ => Ok(()),
        };
        order.iter().try_for_each(copied)
    })
}

/// Makes a file with room for tensors that several processes [`fill`]; once they have, it is what [`write()`] would have written.
///
/// # Errors
/// A disk that is full or read-only.
pub fn reserve(path: &Path, tensors: &[Saved<'_>]) -> Result<()> {
    let (header, order) = layout(tensors, &[]).map_err(|e| e.at(path.display()))?;
    let room: usize = order.iter().map(|data| data.len() * (data.dtype().bitsize() / 8)).sum();
    let make = || {
        let mut file = File::create_new(path)?;
        file.write_all(&header)?;
        file.set_len((header.len() + room) as u64)
    };
    make().map_err(|e| io_error("cannot write", &e, path))
}

/// Elements that [`fill`] writes.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The tensor's key.
    pub name: String,
    /// The first of its elements.
    pub first: usize,
    /// As many elements, of f32 or u8.
    pub of: &'a Tensor,
}

/// Writes parts of the tensors of a file that [`reserve`] made, to the disk.
///
/// # Errors
/// A file that has no room for them; a disk that is full or read-only.
pub fn fill(path: &Path, parts: &[Part<'_>]) -> Result<()> {
    let mut file = File::options().read(true).write(true).open(path).map_err(|e| io_error("cannot open", &e, path))?;
    let header = read_header(&mut file, path)?;
    for Part { name, first, of } in parts {
        let data = Data::On { of, first: 0, len: of.len() };
        let room =
            header.tensors.get(name).filter(|room| room.dtype == data.dtype() && first + of.len() <= room.elements());
        let Some(room) = room else {
            return Err(Error::new(format!("{name}: there is no room for it")).at(path.display()));
        };
        let at = room.range.start + (first * (data.dtype().bitsize() / 8)) as u64;
        let mut write = || {
            file.seek(SeekFrom::Start(at))?;
            write_to(&mut file, &[], &[data])
        };
        write().map_err(|e| io_error("cannot write", &e, path))?;
    }
    file.sync_all().map_err(|e| io_error("cannot write", &e, path))
}

/// The file's bytes up to the data, and the data in its order.
fn layout<'a>(tensors: &[Saved<'a>], metadata: &[(&str, &str)]) -> Result<(Vec<u8>, Vec<Data<'a>>)> {
    let mut header = Map::new();
    let mut texts = Map::from_iter([("format".to_string(), json!("pt"))]);
    texts.extend(metadata.iter().map(|(key, text)| (key.to_string(), json!(text))));
    header.insert("__metadata__".to_string(), texts.into());
    // The widest elements first, so that each is aligned when the file is mapped.
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|t| Reverse(t.data.dtype().bitsize()));
    let mut order = Vec::with_capacity(tensors.len());
    let mut offset = 0;
    for Saved { name, shape, data } in sorted {
        let elements = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        if elements != Some(data.len()) {
            return Err(Error::new(format!(
                "{name}: expected {} elements, found shape {}",
                data.len(),
                shape_text(shape)
            )));
        }
        let dtype = data.dtype();
        let end = offset + data.len() * (dtype.bitsize() / 8);
        let entry = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [offset, end]});
        if header.insert(name.clone(), entry).is_some() {
            return Err(Error::new(format!("tensor {name:?} is to be written twice")));
        }
        offset = end;
        order.push(*data);
    }
    let mut json = serde_json::Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut start = (json.len() as u64).to_le_bytes().to_vec();
    start.append(&mut json);
    Ok((start, order))
}

fn write_to(out: &mut impl Write, header: &[u8], order: &[Data<'_>]) -> io::Result<()> {
    out.write_all(header)?;
    let mut bytes = Vec::with_capacity(CHUNK);
    let mut write_as = |out: &mut dyn Write, x: &[f32], dtype: Dtype| {
        bytes.clear();
        match dtype {
            Dtype::F16 => bytes.extend(x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
            Dtype::BF16 => bytes.extend(x.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
            _ => bytes.extend(x.iter().flat_map(|x| x.to_le_bytes())),
        }
        out.write_all(&bytes)
    };
    for data in order {
        match *data {
            Data::U8(x) => out.write_all(x)?,
            Data::F32(x) => x.chunks(CHUNK / 4).try_for_each(|x| write_as(out, x, Dtype::F32))?,
            Data::On { of, first, len } if of.dtype() == DType::U8 => {
                on_device(of, first, len, CHUNK, |x: &[u8]| out.write_all(x))?;
            }
            Data::On { of, first, len } => {
                on_device(of, first, len, CHUNK / 4, |x: &[f32]| write_as(out, x, Dtype::F32))?
            }
            Data::Stored { weights, name, len } => {
                let mut written = Ok(());
                let each = |_, x: &[f32]| {
                    if written.is_ok() {
                        written = write_as(out, x, Dtype::F32);
                    }
                };
                weights.read_parts(name, len, each).map_err(|e| io::Error::other(e.to_string()))?;
                written?;
            }
            Data::Room { .. } => return Err(io::Error::other("room is reserved, not written")),
            Data::Pieces { from, dtype, .. } => from.pieces(&mut |x| write_as(out, x, dtype))?,
            Data::Coded { of, first, len, dtype } => {
                let rows = len / of.cols;
                let most = (CHUNK / 4 / of.cols).max(1);
                let mut part = vec![0.0; most.min(rows) * of.cols];
                for start in (0..rows).step_by(most) {
                    let part = &mut part[..most.min(rows - start) * of.cols];
                    of.read_rows(first + start, part);
                    write_as(out, part, dtype)?;
                }
            }
        }
    }
    Ok(())
}

/// Hands elements of a tensor to `each`, at most `most` at a time.
fn on_device<T: Element>(
    of: &Tensor,
    first: usize,
    len: usize,
    most: usize,
    mut each: impl FnMut(&[T]) -> io::Result<()>,
) -> io::Result<()> {
    let mut part = vec![T::default(); most.min(len)];
    (0..len).step_by(most).try_for_each(|start| {
        let part = &mut part[..most.min(len - start)];
        of.read_range(first + start, part);
        each(part)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::super::header::parse_header;
    use super::super::names::WEIGHTS_FILE;
    use super::*;

    pub(in crate::checkpoint) fn f32s<'a>(name: &str, shape: &[usize], data: &'a [f32]) -> Saved<'a> {
        Saved { name: name.to_string(), shape: shape.to_vec(), data: Data::F32(data) }
    }

    /// A file that two fill is the file that one writes.
    #[test]
    fn parts_make_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
        let device = colrow_tensor::Device::cpu();
        let class = colrow_tensor::Class::Optimizer;
        let numbers: Vec<f32> = (0..10).map(|i| i as f32 / 3.0).collect();
        let (x, bytes) = (device.tensor(class, &[10], &numbers), device.tensor(class, &[6], &[1_u8, 2, 3, 4, 5, 6]));
        let saved = |name: &str, of| {
            let data = Data::On { of, first: 0, len: Tensor::len(of) };
            Saved { name: name.to_owned(), shape: vec![2, of.len() / 2], data }
        };
        let all = [saved("bytes", &bytes), saved("x", &x)];
        write(&whole, &all, &[]).unwrap();
        let room = |s: &Saved<'_>| Saved { data: Data::Room { len: s.data.len(), dtype: s.data.dtype() }, ..s.clone() };
        reserve(&parts, &all.each_ref().map(room)).unwrap();
        let (begin, end) = (device.tensor(class, &[7], &numbers[..7]), device.tensor(class, &[3], &numbers[7..]));
        let part = |name: &str, first, of| Part { name: name.to_owned(), first, of };
        fill(&parts, &[part("x", 7, &end)]).unwrap();
        fill(&parts, &[part("bytes", 0, &bytes), part("x", 0, &begin)]).unwrap();
        assert_eq!(fs::read(&parts).unwrap(), fs::read(&whole).unwrap());
        let mut read = device.zeros(class, colrow_tensor::DType::F32, &[3]);
        Weights::open_file(&parts).unwrap().read_part("x", 7, &mut read).unwrap();
        assert_eq!(read.to_vec::<f32>(), numbers[7..]);
        for wrong in [part("x", 8, &end), part("y", 0, &end), part("x", 0, &bytes)] {
            assert!(fill(&parts, &[wrong]).unwrap_err().to_string().contains("there is no room for it"));
        }
    }

    /// A copy of a tensor is of the file that was opened: not of what was written over it, which leaves no file.
    #[test]
    fn what_is_copied_is_what_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        write(&from, &[f32s("x", &[2], &[1.0, 2.0])], &[]).unwrap();
        let weights = Weights::open_file(&from).unwrap();
        let data = Data::Stored { weights: &weights, name: "x", len: 2 };
        let copy = || write(&to, &[Saved { name: "x".into(), shape: vec![2], data }], &[]);
        copy().unwrap();
        assert_eq!(fs::read(&to).unwrap(), fs::read(&from).unwrap());
        // another file in its place is none of ours
        fs::rename(&from, dir.path().join("away")).unwrap();
        write(&from, &[f32s("x", &[2], &[3.0, 4.0])], &[]).unwrap();
        copy().unwrap();
        fs::remove_file(&to).unwrap();
        let mut file = File::options().write(true).open(dir.path().join("away")).unwrap();
        file.seek(SeekFrom::End(-4)).unwrap();
        file.write_all(&5.0_f32.to_le_bytes()).unwrap();
        file.set_modified(SystemTime::now() + std::time::Duration::from_secs(1)).unwrap();
        let e = copy().unwrap_err().to_string();
        assert!(e.contains("was written to after its weights were read") && e.contains("--resume"), "{e}");
        assert!(!to.exists());
    }

    pub(in crate::checkpoint) fn read_all(weights: &Weights, name: &str) -> Vec<f32> {
        let mut out = vec![f32::NAN; weights.shape(name).unwrap().iter().product()];
        weights.read(name, &mut out).unwrap();
        out
    }

    #[track_caller]
    pub(in crate::checkpoint) fn fails<T>(result: Result<T>, expected: &str) {
        let e = result.err().expect("an error").to_string();
        assert!(e.contains(expected), "{e:?} does not contain {expected:?}");
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.safetensors");
        let long: Vec<f32> = (0..200_000).map(|i| i as f32 * 0.5).collect();
        let odd = [f32::MIN_POSITIVE, -0.0, f32::INFINITY];
        let bytes = Saved { name: "state.q".to_string(), shape: vec![5], data: Data::U8(&[1, 2, 3, 4, 255]) };
        write(
            &path,
            &[bytes, f32s("long", &[400, 500], &long), f32s("odd", &[3], &odd), f32s("none", &[0, 4], &[])],
            &[("step", "7")],
        )
        .unwrap();

        let weights = Weights::open_file(&path).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["long", "none", "odd", "state.q"]);
        assert_eq!(weights.shape("long"), Some(&[400, 500][..]));
        assert_eq!(weights.dtype("state.q"), Some(Dtype::U8));
        assert_eq!(read_all(&weights, "long"), long);
        assert_eq!(read_all(&weights, "odd").map_bits(), odd.to_vec().map_bits());
        let mut out = [0; 5];
        weights.read_u8("state.q", &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4, 255]);

        let file = fs::read(&path).unwrap();
        let header = parse_header(&file, file.len() as u64).unwrap();
        assert_eq!((&*header.metadata["format"], &*header.metadata["step"]), ("pt", "7"));
        assert!(header.tensors.values().filter(|t| t.dtype == Dtype::F32).all(|t| t.range.start % 4 == 0));
        // The reference implementation agrees.
        let reference = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(
            reference.tensor("odd").unwrap().data(),
            odd.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()
        );
    }

    trait MapBits {
        fn map_bits(&self) -> Vec<u32>;
    }
    impl MapBits for Vec<f32> {
        fn map_bits(&self) -> Vec<u32> {
            self.iter().map(|x| x.to_bits()).collect()
        }
    }

    #[test]
    fn wrong_tensors_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(WEIGHTS_FILE);
        fails(write(&path, &[f32s("a", &[2], &[1.0])], &[]), "a: expected 1 elements, found shape (2)");
        fails(write(&path, &[f32s("a", &[usize::MAX, 2], &[1.0])], &[]), "a: expected 1 elements");
        fails(write(&path, &[f32s("a", &[1], &[1.0]), f32s("a", &[1], &[1.0])], &[]), "written twice");
        assert!(!path.exists());
    }

    /// Takes some bytes and is then full.
    struct Disk(usize);
    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 && !bytes.is_empty() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(WEIGHTS_FILE);
        write(&path, &[f32s("a", &[1], &[1.0])], &[]).unwrap();
        let new = vec![2.0; 1000];
        let (header, order) = layout(&[f32s("a", &[1000], &new)], &[]).unwrap();
        let whole = header.len() + 4000;
        write_to(&mut Disk(whole), &header, &order).unwrap();
        for room in [0, 4, header.len(), whole - 1] {
            let full = write_file_atomic(&path, |_| {
                write_to(&mut Disk(room), &header, &order).map_err(|e| io_error("cannot write", &e, &path))
            });
            fails(full, "free some space");
            assert_eq!(read_all(&Weights::open(dir.path()).unwrap(), "a"), [1.0]);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    proptest! {
        #![proptest_config(crate::files::fixed_cases(256))]

        #[test]
        fn any_shapes_come_back(shapes in prop::collection::vec(prop::collection::vec(0usize..4, 0..4), 0..5)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(WEIGHTS_FILE);
            let data: Vec<Vec<f32>> = shapes.iter().enumerate().map(|(i, s)| vec![i as f32; s.iter().product()]).collect();
            let tensors: Vec<_> = shapes.iter().zip(&data).enumerate().map(|(i, (s, d))| f32s(&i.to_string(), s, d)).collect();
            write(&path, &tensors, &[]).unwrap();
            let weights = Weights::open(dir.path()).unwrap();
            for (i, (shape, data)) in shapes.iter().zip(&data).enumerate() {
                let name = i.to_string();
                prop_assert_eq!(weights.shape(&name), Some(&shape[..]));
                prop_assert_eq!(&read_all(&weights, &name), data);
            }
        }
    }
}
