//! Reading and writing safetensors checkpoints: one file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use colrow_tensor::{Coded, DType, Element, Error, Result, Tensor};
use half::{bf16, f16};
pub use safetensors::Dtype;
use serde_json::{Map, json};

use super::header::{Header, StoredTensor, header_len, parse_header};
use super::index::parse_index;
use super::names::{INDEX_FILE, WEIGHTS_FILE};
use crate::atomic::write_file_atomic;
use crate::files::{self, first_ten, io_error, read_json_bytes, shape_text};

/// Bytes read or written at a time; small enough for the cache, large enough for the disk.
const CHUNK: usize = 1 << 18;

/// The tensors of a checkpoint, read on demand.
///
/// The files are read, not mapped: mapped pages would count as resident memory of the program, and a file that another
/// program shortens would kill it.
#[derive(Debug)]
pub struct Weights {
    files: Vec<(PathBuf, Mutex<File>)>,
    /// The files as they were when they were opened.
    opened: Vec<Stamp>,
    tensors: BTreeMap<String, (usize, StoredTensor)>,
}

/// What a file's content does not change without.
type Stamp = (u64, Option<SystemTime>);

fn stamp(file: &File, path: &Path) -> Result<Stamp> {
    let metadata = file.metadata().map_err(|e| io_error("cannot read", &e, path))?;
    // not every file system has times
    Ok((metadata.len(), metadata.modified().ok()))
}

impl Weights {
    /// Opens `model.safetensors` in `dir`, or else the shards that `model.safetensors.index.json` names.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join(WEIGHTS_FILE);
        let index = dir.join(INDEX_FILE);
        if single.exists() || !index.exists() { Self::open_file(&single) } else { Self::open_sharded(dir, &index) }
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut weights = Self { files: Vec::new(), opened: Vec::new(), tensors: BTreeMap::new() };
        weights.add(path)?;
        Ok(weights)
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Self> {
        let map = parse_index(&read_json_bytes(index)?).map_err(|e| e.at(index.display()))?;
        let shards: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let absent: Vec<_> = shards.iter().filter(|shard| !dir.join(shard).exists()).collect();
        if !absent.is_empty() {
            return Err(Error::new(format!("the index names shards that are not there: {}", first_ten(&absent)))
                .at(index.display())
                .hint("fetch the missing files into the same folder"));
        }
        let mut weights = Self { files: Vec::new(), opened: Vec::new(), tensors: BTreeMap::new() };
        for shard in shards {
            weights.add(&dir.join(shard))?;
        }
        let misplaced: Vec<_> = map
            .iter()
            .filter(|(name, shard)| weights.path_of(name).is_none_or(|path| path != dir.join(shard)))
            .map(|(name, shard)| format!("{name} (in {shard})"))
            .collect();
        if !misplaced.is_empty() {
            return Err(Error::new(format!(
                "the index names tensors that their shard does not hold: {}",
                first_ten(&misplaced)
            ))
            .at(index.display())
            .hint("the shards and the index are not of the same checkpoint: fetch them again"));
        }
        Ok(weights)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let mut file = files::open(path).map_err(|e| io_error("cannot open", &e, path))?;
        let header = read_header(&mut file, path)?;
        let number = self.files.len();
        for (name, stored) in header.tensors {
            if let Some((other, _)) = self.tensors.get(&name) {
                return Err(Error::new(format!("tensor {name:?} is in two shards"))
                    .at(self.files[*other].0.display())
                    .at(path.display()));
            }
            self.tensors.insert(name, (number, stored));
        }
        self.opened.push(stamp(&file, path)?);
        self.files.push((path.to_path_buf(), Mutex::new(file)));
        Ok(())
    }

    /// That no file was written to since it was opened.
    ///
    /// # Errors
    /// A file that was.
    pub fn check_unchanged(&self) -> Result<()> {
        for ((path, file), opened) in self.files.iter().zip(&self.opened) {
            let now = stamp(&file.lock().unwrap_or_else(PoisonError::into_inner), path)?;
            if now != *opened {
                return Err(Error::new("the file was written to after its weights were read")
                    .at(path.display())
                    .hint("frozen weights in codes are saved from it: put the file back as it was, and start again with --resume"));
            }
        }
        Ok(())
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The names and shapes of all tensors, sorted by name.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, (_, stored))| (name.as_str(), stored.shape.as_slice()))
    }

    /// The shape of a tensor, row-major.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, stored)| stored.shape.as_slice())
    }

    /// The element type a tensor is stored in.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|(_, stored)| stored.dtype)
    }

    /// The file that holds a tensor.
    pub fn path_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|(file, _)| self.files[*file].0.as_path())
    }

    /// Reads a tensor of type f32, f16, bf16 or f64 as f32, in row-major order; `out` has as many elements as the tensor.
    pub fn read(&self, name: &str, out: &mut [f32]) -> Result<()> {
        self.read_parts(name, out.len(), |first, part| out[first..][..part.len()].copy_from_slice(part))
    }

    /// As [`Weights::read`], of `len` elements, part by part: `each` gets the number of a part's first element, and the part.
    pub fn read_parts(&self, name: &str, len: usize, each: impl FnMut(usize, &[f32])) -> Result<()> {
        match self.dtype(name) {
            Some(Dtype::F32) => self.convert(name, len, f32::from_le_bytes, each),
            Some(Dtype::F16) => self.convert(name, len, |b| f16::from_le_bytes(b).to_f32(), each),
            Some(Dtype::BF16) => self.convert(name, len, |b| bf16::from_le_bytes(b).to_f32(), each),
            Some(Dtype::F64) => self.convert(name, len, |b| f64::from_le_bytes(b) as f32, each),
            other => Err(self.unreadable(name, "F32, F16, BF16 or F64", other)),
        }
    }

    /// Reads a tensor of type u8; `out` has as many elements as the tensor.
    pub fn read_u8(&self, name: &str, out: &mut [u8]) -> Result<()> {
        self.read_u8_parts(name, out.len(), |first, part| out[first..][..part.len()].copy_from_slice(part))
    }

    fn read_u8_parts(&self, name: &str, len: usize, each: impl FnMut(usize, &[u8])) -> Result<()> {
        match self.dtype(name) {
            Some(Dtype::U8) => self.convert(name, len, |[b]| b, each),
            other => Err(self.unreadable(name, "U8", other)),
        }
    }

    /// Reads a tensor into one of the device's, of f32 or u8 and as many elements.
    pub fn read_into(&self, name: &str, out: &mut Tensor) -> Result<()> {
        match out.dtype() {
            DType::U8 => self.read_u8_parts(name, out.len(), |first, part| out.write_range(first, part)),
            _ => self.read_parts(name, out.len(), |first, part| out.write_range(first, part)),
        }
    }

    /// Whether two tensors have the same type, shape and bytes.
    pub fn are_equal(&self, a: &str, b: &str) -> Result<bool> {
        let find = |name: &str| self.tensors.get(name).ok_or_else(|| self.unreadable(name, "", None));
        let ((file_a, a), (file_b, b)) = (find(a)?, find(b)?);
        if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
            return Ok(false);
        }
        let [mut one, mut other] = [vec![0; CHUNK], vec![0; CHUNK]];
        for start in (0..a.range.end - a.range.start).step_by(CHUNK) {
            let length = CHUNK.min((a.range.end - a.range.start - start) as usize);
            self.read_bytes(*file_a, a.range.start + start, &mut one[..length])?;
            self.read_bytes(*file_b, b.range.start + start, &mut other[..length])?;
            if one[..length] != other[..length] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_bytes(&self, file: usize, start: u64, out: &mut [u8]) -> Result<()> {
        let (path, file) = &self.files[file];
        // Each read starts by seeking, so a reader that panicked leaves nothing half done.
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(out));
        read.map_err(|e| io_error("cannot read", &e, path))
    }

    fn unreadable(&self, name: &str, expected: &str, found: Option<Dtype>) -> Error {
        match (found, self.path_of(name)) {
            (Some(found), Some(path)) => {
                Error::new(format!("{name}: expected dtype {expected}, found {found}")).at(path.display())
            }
            _ => {
                let files: Vec<_> = self.files.iter().map(|(path, _)| path.display().to_string()).collect();
                Error::new(format!("no tensor {name:?}")).at(first_ten(&files))
            }
        }
    }

    /// Reads `len` elements of `N` bytes each and hands them, converted, to `each`.
    fn convert<const N: usize, T: Copy + Default>(
        &self,
        name: &str,
        len: usize,
        convert: impl Fn([u8; N]) -> T,
        mut each: impl FnMut(usize, &[T]),
    ) -> Result<()> {
        let Some((file, stored)) = self.tensors.get(name) else {
            return Err(self.unreadable(name, "", None));
        };
        let (path, file) = &self.files[*file];
        if len != stored.elements() {
            let shape = shape_text(&stored.shape);
            return Err(Error::new(format!("{name}: expected {len} elements, found shape {shape}")).at(path.display()));
        }
        // Each read starts by seeking, so a reader that panicked leaves nothing half done.
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let most = len.min(CHUNK / N);
        let (mut bytes, mut part) = (vec![0; most * N], vec![T::default(); most]);
        let mut read = || -> io::Result<()> {
            file.seek(SeekFrom::Start(stored.range.start))?;
            for first in (0..len).step_by(CHUNK / N) {
                let count = most.min(len - first);
                file.read_exact(&mut bytes[..count * N])?;
                part.iter_mut().zip(bytes.as_chunks::<N>().0).for_each(|(x, b)| *x = convert(*b));
                each(first, &part[..count]);
            }
            Ok(())
        };
        read().map_err(|e| io_error(&format!("{name}: cannot read"), &e, path))
    }
}

/// Reads the header of an open file and checks it against the file's size.
fn read_header(file: &mut File, path: &Path) -> Result<Header> {
    let failed = |e: io::Error| io_error("cannot read", &e, path);
    let file_len = file.metadata().map_err(failed)?.len();
    let mut start = Vec::new();
    file.take(16).read_to_end(&mut start).map_err(failed)?;
    let header = header_len(&start, file_len).and_then(|len| {
        let missing = (8 + len).saturating_sub(start.len());
        file.take(missing as u64).read_to_end(&mut start).map_err(failed)?;
        parse_header(&start, file_len)
    });
    header.map_err(|e| e.at(path.display()))
}

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
    /// The numbers of a matrix in codes, from row `first` on.
    Coded {
        /// The matrix.
        of: &'a Coded,
        /// The first row.
        first: usize,
        /// Their number.
        len: usize,
    },
}

impl Data<'_> {
    fn len(&self) -> usize {
        match self {
            Data::F32(x) => x.len(),
            Data::U8(x) => x.len(),
            Data::On { len, .. } | Data::Stored { len, .. } | Data::Coded { len, .. } => *len,
        }
    }

    fn is_wide(&self) -> bool {
        match self {
            Data::F32(_) | Data::Stored { .. } | Data::Coded { .. } => true,
            Data::U8(_) => false,
            Data::On { of, .. } => of.dtype() != DType::U8,
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

/// The file's bytes up to the data, and the data in its order.
fn layout<'a>(tensors: &[Saved<'a>], metadata: &[(&str, &str)]) -> Result<(Vec<u8>, Vec<Data<'a>>)> {
    let mut header = Map::new();
    let mut texts = Map::from_iter([("format".to_string(), json!("pt"))]);
    texts.extend(metadata.iter().map(|(key, text)| (key.to_string(), json!(text))));
    header.insert("__metadata__".to_string(), texts.into());
    // The widest elements first, so that each is aligned when the file is mapped.
    let (wide, bytes): (Vec<_>, Vec<_>) = tensors.iter().partition(|t| t.data.is_wide());
    let mut order = Vec::with_capacity(tensors.len());
    let mut offset = 0;
    for Saved { name, shape, data } in wide.into_iter().chain(bytes) {
        let elements = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        if elements != Some(data.len()) {
            return Err(Error::new(format!(
                "{name}: expected {} elements, found shape {}",
                data.len(),
                shape_text(shape)
            )));
        }
        let (dtype, size) = if data.is_wide() { ("F32", 4) } else { ("U8", 1) };
        let end = offset + data.len() * size;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]});
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
    let mut write = |out: &mut dyn Write, x: &[f32]| {
        bytes.clear();
        bytes.extend(x.iter().flat_map(|x| x.to_le_bytes()));
        out.write_all(&bytes)
    };
    for data in order {
        match *data {
            Data::U8(x) => out.write_all(x)?,
            Data::F32(x) => x.chunks(CHUNK / 4).try_for_each(|x| write(out, x))?,
            Data::On { of, first, len } if of.dtype() == DType::U8 => {
                on_device(of, first, len, CHUNK, |x: &[u8]| out.write_all(x))?;
            }
            Data::On { of, first, len } => on_device(of, first, len, CHUNK / 4, |x: &[f32]| write(out, x))?,
            Data::Stored { weights, name, len } => {
                let mut written = Ok(());
                let each = |_, x: &[f32]| {
                    if written.is_ok() {
                        written = write(out, x);
                    }
                };
                weights.read_parts(name, len, each).map_err(|e| io::Error::other(e.to_string()))?;
                written?;
            }
            Data::Coded { of, first, len } => {
                let rows = len / of.cols;
                let most = (CHUNK / 4 / of.cols).max(1);
                let mut part = vec![0.0; most.min(rows) * of.cols];
                for start in (0..rows).step_by(most) {
                    let part = &mut part[..most.min(rows - start) * of.cols];
                    of.read_rows(first + start, part);
                    write(out, part)?;
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
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn f32s<'a>(name: &str, shape: &[usize], data: &'a [f32]) -> Saved<'a> {
        Saved { name: name.to_string(), shape: shape.to_vec(), data: Data::F32(data) }
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

    /// A safetensors file with one tensor `x` of the given type and bytes.
    fn raw(dtype: &str, elements: usize, data: &[u8]) -> Vec<u8> {
        let json = format!(r#"{{"x":{{"dtype":"{dtype}","shape":[{elements}],"data_offsets":[0,{}]}}}}"#, data.len());
        [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat()
    }

    fn read_all(weights: &Weights, name: &str) -> Vec<f32> {
        let mut out = vec![f32::NAN; weights.shape(name).unwrap().iter().product()];
        weights.read(name, &mut out).unwrap();
        out
    }

    #[track_caller]
    fn fails<T>(result: Result<T>, expected: &str) {
        let e = result.err().expect("an error").to_string();
        assert!(e.contains(expected), "{e:?} does not contain {expected:?}");
    }

    #[test]
    fn tensors_are_equal_if_their_bytes_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        // of several chunks, the last one short
        let long = vec![1.0; CHUNK / 2 + 3];
        let mut other = long.clone();
        *other.last_mut().unwrap() = 2.0;
        let n = [long.len()];
        let tensors = [f32s("a", &n, &long), f32s("b", &n, &long), f32s("c", &n, &other), f32s("d", &[1, n[0]], &long)];
        write(&path, &tensors, &[]).unwrap();
        let weights = Weights::open_file(&path).unwrap();
        let equal = |b: &str| weights.are_equal("a", b).unwrap();
        assert_eq!(["a", "b", "c", "d"].map(equal), [true, true, false, false]);
        assert!(weights.are_equal("a", "e").is_err());
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
    fn half_and_double_precision_become_single() {
        let dir = tempfile::tempdir().unwrap();
        let values = [1.5f32, -0.25, 1024.0];
        let cases: [(&str, Vec<u8>); 3] = [
            ("F16", values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()),
            ("BF16", values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()),
            ("F64", values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect()),
        ];
        for (dtype, bytes) in cases {
            fs::write(dir.path().join(WEIGHTS_FILE), raw(dtype, 3, &bytes)).unwrap();
            assert_eq!(read_all(&Weights::open(dir.path()).unwrap(), "x"), values, "{dtype}");
        }
    }

    #[test]
    fn wrong_reads_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(WEIGHTS_FILE);
        fs::write(&path, raw("I64", 1, &[0; 8])).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        fails(weights.read("x", &mut [0.0]), "x: expected dtype F32, F16, BF16 or F64, found I64");
        fails(weights.read_u8("x", &mut [0]), "x: expected dtype U8, found I64");
        fails(weights.read("y", &mut [0.0]), "no tensor \"y\"");
        fs::write(&path, raw("F32", 2, &[0; 8])).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        fails(weights.read("x", &mut [0.0]), "x: expected 1 elements, found shape (2)");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        fails(weights.read("x", &mut [0.0; 2]), "x: cannot read");
    }

    #[test]
    fn bad_files_are_named_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        fails(Weights::open(dir.path()), "cannot open");
        let path = dir.path().join(WEIGHTS_FILE);
        let good = raw("F32", 2, &[0; 8]);
        for (bytes, expected) in [
            (&b""[..], "an empty file"),
            (&good[..good.len() - 1], "which has 7"),
            (&good[..40], "the header should be"),
            (b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0", "torch.save"),
        ] {
            fs::write(&path, bytes).unwrap();
            fails(Weights::open(dir.path()), expected);
            fails(Weights::open(dir.path()), WEIGHTS_FILE);
        }
    }

    fn write_shards(dir: &Path) {
        write(&dir.join("1.safetensors"), &[f32s("a", &[1], &[1.0])], &[]).unwrap();
        write(&dir.join("2.safetensors"), &[f32s("b", &[2], &[2.0, 3.0])], &[]).unwrap();
    }

    fn open_with_index(dir: &Path, map: &str) -> Result<Weights> {
        fs::write(dir.join(INDEX_FILE), format!(r#"{{"metadata":{{"total_size":12}},"weight_map":{map}}}"#)).unwrap();
        Weights::open(dir)
    }

    #[test]
    fn shards_are_one_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        write_shards(dir.path());
        let weights = open_with_index(dir.path(), r#"{"a":"1.safetensors","b":"2.safetensors"}"#).unwrap();
        assert_eq!(weights.shapes().collect::<Vec<_>>(), [("a", &[1][..]), ("b", &[2])]);
        assert_eq!(read_all(&weights, "b"), [2.0, 3.0]);
        assert_eq!(weights.path_of("b"), Some(&*dir.path().join("2.safetensors")));
    }

    #[test]
    fn bad_indices_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let open = |map: &str| open_with_index(dir.path(), map);
        write_shards(dir.path());
        fails(open(r#"{"a":"1.safetensors","b":"3.safetensors"}"#), "shards that are not there: 3.safetensors");
        fails(open(r#"{"a":"1.safetensors","c":"2.safetensors"}"#), "does not hold: c (in 2.safetensors)");
        fails(open(r#"{"a":"2.safetensors","b":"1.safetensors"}"#), "does not hold: a (in 2.safetensors), b (in 1");
        fails(open(r#"{"a":"1.safetensors","a":"2.safetensors"}"#), "tensor \"a\" is there twice");
        fails(open("[]"), "a map from tensor names to file names");
        fails(open("{"), "EOF");
        for outside in ["../1.safetensors", "/etc/passwd", "x/1.safetensors", "..", "", "./1.safetensors"] {
            fails(open(&format!(r#"{{"a":"{outside}"}}"#)), "beside the index");
        }
        fs::copy(dir.path().join("1.safetensors"), dir.path().join("3.safetensors")).unwrap();
        fails(open(r#"{"a":"1.safetensors","b":"3.safetensors"}"#), "tensor \"a\" is in two shards");
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
