//! What is found in the place of a file that was meant.

use colrow_tensor::Error;

/// Bytes from the start of a file that [`foreign`] needs.
pub const HEAD: usize = 512;

/// A format that only its first bytes give away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What the file is: `a Git LFS pointer, not the file itself`.
    pub what: &'static str,
    /// What to do about it.
    pub hint: &'static str,
}

impl Foreign {
    /// The error of a file that should have been `expected`.
    pub fn instead_of(self, expected: &str) -> Error {
        Error::new(format!("expected {expected}, found {}", self.what)).hint(self.hint)
    }
}

const UTF16: Foreign = Foreign { what: "text in UTF-16", hint: "save it as UTF-8" };
const PAGE: Foreign = Foreign { what: "a web page", hint: "fetch the file itself, not the page that shows it" };
const UNPACK: &str = "unpack it first";
/// What to do with a spreadsheet.
pub const SHEET: &str = "save the sheet as CSV UTF-8; in pandas read_excel(path).to_csv(\"data.csv\", index=False)";
const EXPORT: &str = "export it as CSV, JSON lines or Parquet first";

/// Formats by their first bytes.
const MAGIC: [(&[u8], &str, &str); 15] = [
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file itself: git lfs pull"),
    (b"\x1f\x8b", "a file packed by gzip", UNPACK),
    (b"BZh", "a file packed by bzip2", UNPACK),
    (b"\xfd7zXZ\0", "a file packed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a file packed by zstd", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word document", SHEET),
    (b"%PDF-", "a PDF document", EXPORT),
    (b"PAR1", "a Parquet file", "name it .parquet"),
    (b"ARROW1", "an Arrow (Feather) file", EXPORT),
    (b"SQLite format 3\0", "an SQLite database", EXPORT),
    (b"\x89HDF", "an HDF5 file", EXPORT),
    (b"\xff\xfe\0\0", "text in UTF-32", "save it as UTF-8"),
    (b"\0\0\xfe\xff", "text in UTF-32", "save it as UTF-8"),
];

/// What a file is that starts with `head`, if it is of a format that is often found where another was meant.
pub fn foreign(head: &[u8]) -> Option<Foreign> {
    let head = &head[..head.len().min(HEAD)];
    if let Some((_, what, hint)) = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Some(Foreign { what, hint });
    }
    if head.starts_with(ZIP) {
        return Some(in_zip(head));
    }
    // Python's pickle says its protocol in the second byte, and its last is a full stop
    if let [0x80, 2..=5, ..] = head {
        return Some(Foreign { what: "a Python pickle", hint: EXPORT });
    }
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") || is_utf16_without_mark(head) {
        return Some(UTF16);
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let starts = |with: &str| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()));
    if ["<!doctype html", "<html", "<head>", "<body", "<table"].into_iter().any(starts) {
        return Some(PAGE);
    }
    let xml = Foreign { what: "an XML document", hint: "is it the message of a server? Fetch the file itself" };
    starts("<?xml").then_some(xml)
}

const ZIP: &[u8] = b"PK\x03\x04";

/// What a zip archive is, by the name of its first file.
fn in_zip(head: &[u8]) -> Foreign {
    let name = head.get(30..).unwrap_or_default();
    let begins = |with: &str| name.starts_with(with.as_bytes());
    if ["[Content_Types].xml", "xl/", "_rels/", "docProps/"].into_iter().any(begins) {
        Foreign { what: "an Excel workbook", hint: SHEET }
    } else if begins("mimetypeapplication/vnd.oasis.opendocument") {
        Foreign { what: "an OpenDocument file", hint: SHEET }
    } else {
        Foreign { what: "a zip archive", hint: UNPACK }
    }
}

/// Whether every other byte is zero, as in UTF-16 of Latin letters.
fn is_utf16_without_mark(head: &[u8]) -> bool {
    let zeros = |from: usize| head.iter().skip(from).step_by(2).filter(|&&byte| byte == 0).count();
    let most = head.len() / 2;
    let (even, odd) = (zeros(0), zeros(1));
    most >= 4 && (even == 0 && odd * 10 >= most * 9 || odd == 0 && even * 10 >= most * 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(head: &[u8]) -> Option<&'static str> {
        foreign(head).map(|f| f.what)
    }

    #[test]
    fn accidents_are_named() {
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        for (head, expected) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"[..], "LFS pointer"),
            (b"\n <!DOCTYPE html>\n<html>", "web page"),
            (b"\xef\xbb\xbf<HTML lang=en>", "web page"),
            (b"<?xml version=\"1.0\"?><Error>", "XML"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"PK\x03\x04\x14\0", "a zip archive"),
            (b"PAR1\x15\x04", "Parquet"),
            (b"\x80\x04\x95", "pickle"),
            (b"\xff\xfet\0e\0", "UTF-16"),
            (b"\xfe\xff\0t", "UTF-16"),
            (b"\xff\xfe\0\0t\0\0\0", "UTF-32"),
            (&utf16("text,label\n"), "UTF-16"),
        ] {
            assert!(what(head).is_some_and(|found| found.contains(expected)), "{expected}: {:?}", what(head));
        }
    }

    #[test]
    fn data_is_not_foreign() {
        for head in ["", "t", "text,label\n", "{\"text\": 1}", "[", "<p>a review</p>,1", "version,label\n", "BZ", "é\n"]
        {
            assert_eq!(foreign(head.as_bytes()), None, "{head:?}");
        }
        assert_eq!(foreign(&[0; 64]), None);
        let error = UTF16.instead_of("a JSON file").to_string();
        assert_eq!(error, "expected a JSON file, found text in UTF-16\n  hint: save it as UTF-8");
    }
}
