//! A matrix in a NumPy `.npy` file.

use std::io::{self, BufReader, BufWriter, Read};
use std::path::Path;

use colrow_models::atomic::write_file_atomic;
use colrow_models::files::{self, io_error};
use colrow_tensor::{Error, Result, Tensor};
use half::{bf16, f16};
use npyz::{DType, Endianness, NpyFile, NpyHeader, Order, TypeChar, WriterBuilder};

/// NumPy's own limit on the length of a header, in bytes.
const MAX_HEADER: usize = 10_000;
/// The header is parsed by recursion, so its nesting is bounded before it is parsed.
const MAX_BRACKETS: usize = 200;

/// A matrix of finite values, row-major.
#[derive(Debug)]
pub(crate) struct Matrix {
    /// Number of rows, at least 1.
    pub(crate) rows: usize,
    /// Number of columns, at least 1.
    pub(crate) cols: usize,
    /// `rows × cols` values, row by row.
    pub(crate) values: Vec<f64>,
}

/// How a value is stored.
#[derive(Clone, Copy)]
enum Width {
    Half,
    /// As ml_dtypes writes it: two bytes without a meaning of their own to NumPy.
    Brain,
    Single,
    Double,
}

impl Width {
    fn of(dtype: &DType) -> Option<(Self, Endianness)> {
        let DType::Plain(ty) = dtype else { return None };
        let width = match (ty.type_char(), ty.size_field()) {
            (TypeChar::Float, 2) => Self::Half,
            (TypeChar::RawData, 2) => Self::Brain,
            (TypeChar::Float, 4) => Self::Single,
            (TypeChar::Float, 8) => Self::Double,
            _ => return None,
        };
        Some((width, ty.endianness()))
    }
}

/// Reads a 2-D `.npy` file of floats of 16, 32 or 64 bits or of bfloat16, in C or Fortran order and of either endianness.
///
/// # Errors
/// When the file cannot be read, is no `.npy` file, holds another dtype or another number of dimensions, has no values,
/// is truncated, or holds a value that is not finite.
pub(crate) fn read(path: &Path) -> Result<Matrix> {
    let in_file = |e: Error| e.at(path.display());
    let file = files::open(path).map_err(|e| in_file(e.into()))?;
    read_from(BufReader::new(file)).map_err(in_file)
}

fn read_from(mut reader: impl Read) -> Result<Matrix> {
    let header = read_header(&mut reader)?;
    let Some((width, endianness)) = Width::of(&header.dtype()) else {
        let found = header.dtype().descr();
        return Err(Error::new(format!("expected floats of 16, 32 or 64 bits, found dtype {found}"))
            .hint("convert it in Python: numpy.save(file, x.astype('float32'))"));
    };
    let &[rows, cols] = header.shape() else {
        return Err(Error::new(format!("expected a 2-D array, found shape {}", tuple(header.shape())))
            .hint("rows are tokens, columns are features: x.reshape(-1, x.shape[-1])"));
    };
    let order = header.order();
    let count = rows
        .checked_mul(cols)
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| Error::new(format!("shape ({rows}, {cols}) is larger than this machine can address")))?;
    if count == 0 {
        return Err(Error::new(format!("expected at least one value, found shape ({rows}, {cols})")));
    }

    let stored = match width {
        Width::Half => halves(&mut reader, count, endianness, |bits| f16::from_bits(bits).into())?,
        Width::Brain => halves(&mut reader, count, endianness, |bits| bf16::from_bits(bits).into())?,
        Width::Single => stored(NpyFile::with_header(header, reader).data::<f32>(), count)?,
        Width::Double => stored(NpyFile::with_header(header, reader).data::<f64>(), count)?,
    };
    if stored.len() < count {
        return Err(Error::new(format!(
            "truncated: shape ({rows}, {cols}) needs {count} values, found {}",
            stored.len()
        )));
    }
    // Both fit: their product does, and neither is 0.
    let (rows, cols) = (rows as usize, cols as usize);
    let values = match order {
        Order::C => stored,
        Order::Fortran => (0..count).map(|i| stored[(i % cols) * rows + i / cols]).collect(),
    };
    if let Some(i) = values.iter().position(|v| !v.is_finite()) {
        return Err(Error::new(format!(
            "expected finite values, found {} at row {}, column {} (counted from 0)",
            values[i],
            i / cols,
            i % cols
        )));
    }
    Ok(Matrix { rows, cols, values })
}

/// Up to `count` values in stored order; fewer if the file ends before. Grows as it reads, so that a header cannot
/// make us allocate more than the file holds.
fn stored<T: Into<f64>>(
    values: Result<impl Iterator<Item = io::Result<T>>, npyz::DTypeError>,
    count: usize,
) -> Result<Vec<f64>> {
    let mut out = Vec::new();
    for value in values.map_err(|e| Error::new(e.to_string()))?.take(count) {
        match value {
            Ok(v) => out.push(v.into()),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(out)
}

/// As [`stored`], of values of two bytes.
fn halves(
    reader: &mut impl Read,
    count: usize,
    endianness: Endianness,
    value: impl Fn(u16) -> f64,
) -> Result<Vec<f64>> {
    let mut bytes = Vec::new();
    reader.take(2 * count as u64).read_to_end(&mut bytes)?;
    let bits = |pair: &[u8]| match endianness {
        Endianness::Big => u16::from_be_bytes([pair[0], pair[1]]),
        _ => u16::from_le_bytes([pair[0], pair[1]]),
    };
    Ok(bytes.chunks_exact(2).map(|pair| value(bits(pair))).collect())
}

/// Writes a tensor's rows as f32.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(path: &Path, tensor: &Tensor) -> Result<()> {
    let values = tensor.to_f64();
    write_file_atomic(path, |file| {
        let options = npyz::WriteOptions::new().default_dtype().shape(&[tensor.rows() as u64, tensor.cols() as u64]);
        let mut writer = options.writer(BufWriter::new(file)).begin_nd()?;
        let written = writer.extend(values.iter().map(|&v| v as f32)).and_then(|()| writer.finish());
        written.map_err(|e| io_error("cannot write", &e, path))
    })
}

fn read_header(reader: &mut impl Read) -> Result<NpyHeader> {
    let mut head = Vec::new();
    // Magic, version, and the header's length: two bytes in version 1, four later.
    reader.take(10).read_to_end(&mut head)?;
    if !head.starts_with(b"\x93NUMPY") {
        return Err(Error::new("expected a NumPy .npy file, found something else")
            .hint("write it in Python: numpy.save(file, x)"));
    }
    let damaged = |why: &str| Error::new(format!("damaged .npy header: {why}"));
    if head.len() == 10 && head[6] >= 2 {
        reader.take(2).read_to_end(&mut head)?;
    }
    let length = match head[..] {
        [_, _, _, _, _, _, 1, _, a, b] => usize::from(u16::from_le_bytes([a, b])),
        [_, _, _, _, _, _, _, _, a, b, c, d] => u32::from_le_bytes([a, b, c, d]) as usize,
        _ => return Err(damaged("the file ends in it")),
    };
    if length > MAX_HEADER {
        return Err(damaged(&format!("its length is given as {length} bytes, the limit is {MAX_HEADER}")));
    }
    let start = head.len();
    reader.take(length as u64).read_to_end(&mut head)?;
    if head.len() < start + length {
        return Err(damaged("the file ends in it"));
    }
    if head[start..].iter().filter(|b| b"([{".contains(b)).count() > MAX_BRACKETS {
        return Err(damaged("too deeply nested"));
    }
    NpyHeader::from_reader(&head[..]).map_err(|e| damaged(&e.to_string()))
}

fn tuple(shape: &[u64]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::{Class, Device};

    use super::*;

    /// A version 1.0 file as NumPy writes it: header padded to 64 bytes.
    fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let order = if fortran { "True" } else { "False" };
        file(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"), data)
    }

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let length = (10 + header.len() + 1).next_multiple_of(64) - 10;
        let mut out = b"\x93NUMPY\x01\x00".to_vec();
        out.extend(u16::try_from(length).unwrap().to_le_bytes());
        out.extend(format!("{header:<width$}\n", width = length - 1).bytes());
        out.extend(data);
        out
    }

    fn message(bytes: &[u8]) -> String {
        read_from(bytes).unwrap_err().to_string()
    }

    // [[1, 2, 3], [4, 5, 6.5]] in both orders.
    const C: [f32; 6] = [1., 2., 3., 4., 5., 6.5];
    const F: [f32; 6] = [1., 4., 2., 5., 3., 6.5];

    #[test]
    fn reads_both_widths_orders_and_endiannesses() {
        for (fortran, stored) in [(false, C), (true, F)] {
            let cases: [(&str, Vec<u8>); 4] = [
                ("'<f4'", stored.iter().flat_map(|v| v.to_le_bytes()).collect()),
                ("'>f4'", stored.iter().flat_map(|v| v.to_be_bytes()).collect()),
                ("'<f8'", stored.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
                ("'>f8'", stored.iter().flat_map(|v| f64::from(*v).to_be_bytes()).collect()),
            ];
            for (descr, data) in cases {
                let m = read_from(&npy(descr, fortran, "(2, 3)", &data)[..]).unwrap();
                assert_eq!((m.rows, m.cols), (2, 3), "{descr} fortran={fortran}");
                assert_eq!(m.values, C.map(f64::from), "{descr} fortran={fortran}");
            }
        }
    }

    /// All of these values have eight bits or fewer: both forms hold them exactly.
    #[test]
    fn reads_floats_of_two_bytes() {
        let half = C.map(|v| f16::from_f32(v).to_bits());
        let brain = C.map(|v| bf16::from_f32(v).to_bits());
        for (descr, data) in [
            ("'<f2'", half.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()),
            ("'>f2'", half.iter().flat_map(|v| v.to_be_bytes()).collect()),
            ("'<V2'", brain.iter().flat_map(|v| v.to_le_bytes()).collect()),
            ("'|V2'", brain.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ] {
            let m = read_from(&npy(descr, false, "(2, 3)", &data)[..]).unwrap();
            assert_eq!(m.values, C.map(f64::from), "{descr}");
            let e = message(&npy(descr, false, "(2, 3)", &data[..7]));
            assert!(e.contains("needs 6 values, found 3"), "{e}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let values = C.map(f64::from);
        let tensor = Device::cpu().tensor(Class::Workspace, &[2, 3], &values.map(|v| v as f32));
        write(&path, &tensor).unwrap();
        let m = read(&path).unwrap();
        assert_eq!((m.rows, m.cols, m.values), (2, 3, values.to_vec()));
        assert!(write(&dir.path().join("none/x.npy"), &tensor).unwrap_err().to_string().contains("none/x.npy"));
    }

    #[test]
    fn reads_version_2_headers() {
        let v1 = npy("'<f8'", false, "(1, 1)", &7.5f64.to_le_bytes());
        let mut v2 = b"\x93NUMPY\x02\x00".to_vec();
        v2.extend([v1[8], v1[9], 0, 0]);
        v2.extend(&v1[10..]);
        assert_eq!(read_from(&v2[..]).unwrap().values, [7.5]);
    }

    #[test]
    fn reads_from_a_path_and_names_it_in_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        std::fs::write(&path, npy("'<f8'", false, "(1, 1)", &2f64.to_le_bytes())).unwrap();
        assert_eq!(read(&path).unwrap().values, [2.0]);
        let missing = dir.path().join("missing.npy");
        let e = read(&missing).unwrap_err().to_string();
        assert!(e.contains(&missing.display().to_string()), "{e}");
    }

    #[test]
    fn refuses_what_is_not_npy() {
        for bytes in [&b""[..], b"a\tb\n", b"PK\x03\x04 a zip file"] {
            assert!(message(bytes).starts_with("expected a NumPy .npy file"), "{}", message(bytes));
        }
    }

    #[test]
    fn names_another_dtype() {
        for descr in ["'<i8'", "'<f16'", "'<c8'", "'|V4'", "'|O'", "[('a', '<f4')]"] {
            let e = message(&npy(descr, false, "(1, 1)", &[0; 8]));
            let named = descr.trim_matches(['[', ']', '(', ')']);
            assert!(e.contains("found dtype") && e.contains(named), "{descr}: {e}");
        }
    }

    #[test]
    fn names_a_shape_that_is_not_2_d() {
        for shape in ["()", "(4,)", "(2, 1, 2)"] {
            let e = message(&npy("'<f4'", false, shape, &[0; 16]));
            assert!(e.contains(&format!("expected a 2-D array, found shape {shape}")), "{e}");
        }
        assert!(message(&npy("'<f4'", false, "(0, 3)", &[])).contains("at least one value, found shape (0, 3)"));
    }

    #[test]
    fn counts_the_values_of_a_truncated_file() {
        let data: Vec<u8> = C.iter().flat_map(|v| v.to_le_bytes()).collect();
        let e = message(&npy("'<f4'", false, "(2, 3)", &data[..18]));
        assert!(e.contains("shape (2, 3) needs 6 values, found 4"), "{e}");
        // A huge shape fails on what the file holds, not on an allocation.
        let e = message(&npy("'<f4'", false, "(1000000000, 1000000000)", &data));
        assert!(e.contains("needs 1000000000000000000 values, found 6"), "{e}");
    }

    #[test]
    fn names_the_first_value_that_is_not_finite() {
        let mut stored = F;
        stored[4] = f32::INFINITY; // row 0, column 2
        stored[1] = f32::NAN; // row 1, column 0
        let data: Vec<u8> = stored.iter().flat_map(|v| v.to_le_bytes()).collect();
        let e = message(&npy("'<f4'", true, "(2, 3)", &data));
        assert!(e.contains("found inf at row 0, column 2"), "{e}");
    }

    #[test]
    fn damaged_headers_are_errors() {
        let whole = npy("'<f4'", false, "(1, 1)", &[0; 4]);
        for end in 6..whole.len() - 4 {
            assert!(message(&whole[..end]).contains("the file ends in it"), "cut at {end}");
        }
        for header in ["", "{", "[]", "{'descr': '<f4'}", "{'descr': 4, 'fortran_order': False, 'shape': (1, 1)}"] {
            assert!(message(&file(header, &[])).starts_with("damaged .npy header"), "{header}");
        }
        assert!(message(&file(&"(".repeat(9000), &[])).contains("too deeply nested"));
        assert!(message(&file(&"(".repeat(MAX_BRACKETS), &[])).starts_with("damaged .npy header"));
        assert!(message(&file(&" ".repeat(20_000), &[])).contains("the limit is 10000"));
        let mut unknown = whole;
        unknown[6] = 9;
        assert!(message(&unknown).starts_with("damaged .npy header"));
    }
}
