//! Reading the tensors of a checkpoint: one safetensors file, or shards with an index. Writing is `safetensors`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use colrow_tensor::{DType, Error, Result, Tensor};
use half::{bf16, f16};
pub use safetensors::Dtype;

use super::header::{Header, StoredTensor, header_len, parse_header};
use super::index::parse_index;
use super::names::{INDEX_FILE, WEIGHTS_FILE};
use crate::files::{self, first_ten, io_error, read_json_bytes, shape_text};

/// Bytes read or written at a time; small enough for the cache, large enough for the disk.
pub(super) const CHUNK: usize = 1 << 18;

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
            Some(Dtype::F32) => self.convert(name, None, len, f32::from_le_bytes, each),
            Some(Dtype::F16) => self.convert(name, None, len, |b| f16::from_le_bytes(b).to_f32(), each),
            Some(Dtype::BF16) => self.convert(name, None, len, |b| bf16::from_le_bytes(b).to_f32(), each),
            Some(Dtype::F64) => self.convert(name, None, len, |b| f64::from_le_bytes(b) as f32, each),
            other => Err(self.unreadable(name, "F32, F16, BF16 or F64", other)),
        }
    }

    /// Reads a tensor of type u8; `out` has as many elements as the tensor.
    pub fn read_u8(&self, name: &str, out: &mut [u8]) -> Result<()> {
        self.read_u8_parts(name, out.len(), |first, part| out[first..][..part.len()].copy_from_slice(part))
    }

    fn read_u8_parts(&self, name: &str, len: usize, each: impl FnMut(usize, &[u8])) -> Result<()> {
        match self.dtype(name) {
            Some(Dtype::U8) => self.convert(name, None, len, |[b]| b, each),
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

    /// Reads the elements from `first` on of a tensor of type f32 or u8, as many as `out`, which is of that type, has.
    pub fn read_part(&self, name: &str, first: usize, out: &mut Tensor) -> Result<()> {
        match (self.dtype(name), out.dtype()) {
            (Some(Dtype::U8), DType::U8) => {
                self.convert(name, Some(first), out.len(), |[b]: [u8; 1]| b, |at, part| out.write_range(at, part))
            }
            (Some(Dtype::F32), DType::F32) => {
                self.convert(name, Some(first), out.len(), f32::from_le_bytes, |at, part| out.write_range(at, part))
            }
            (other, _) => Err(self.unreadable(name, "F32 or U8", other)),
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
        from: Option<usize>,
        len: usize,
        convert: impl Fn([u8; N]) -> T,
        mut each: impl FnMut(usize, &[T]),
    ) -> Result<()> {
        let Some((file, stored)) = self.tensors.get(name) else {
            return Err(self.unreadable(name, "", None));
        };
        let (path, file) = &self.files[*file];
        // all of it, or a part
        let at = from.unwrap_or(0);
        if from.is_none() && len != stored.elements() || at + len > stored.elements() {
            let shape = shape_text(&stored.shape);
            return Err(Error::new(format!("{name}: expected {len} elements, found shape {shape}")).at(path.display()));
        }
        // Each read starts by seeking, so a reader that panicked leaves nothing half done.
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let most = len.min(CHUNK / N);
        let (mut bytes, mut part) = (vec![0; most * N], vec![T::default(); most]);
        let mut read = || -> io::Result<()> {
            file.seek(SeekFrom::Start(stored.range.start + (at * N) as u64))?;
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
pub(super) fn read_header(file: &mut File, path: &Path) -> Result<Header> {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::safetensors::tests::{f32s, fails, read_all};
    use super::super::safetensors::write;
    use super::*;

    /// A safetensors file with one tensor `x` of the given type and bytes.
    fn raw(dtype: &str, elements: usize, data: &[u8]) -> Vec<u8> {
        let json = format!(r#"{{"x":{{"dtype":"{dtype}","shape":[{elements}],"data_offsets":[0,{}]}}}}"#, data.len());
        [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat()
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
}
