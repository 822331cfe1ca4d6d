//! Event files that TensorBoard reads: the numbers of a run's log, as scalars by step.
//!
//! A file is a row of records, each its length, a checksum of that, an event as a protocol buffer, and a checksum of it (TensorFlow's TFRecord;
//! `event.proto` and `summary.proto` of TensorBoard). What is written here needs four kinds of fields of them.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use colrow_models::files;
use serde_json::Value;

/// How names of event files begin.
const PREFIX: &str = "events.out.tfevents.";

/// Field numbers of an event, and of what it holds.
mod field {
    pub(super) const WALL_TIME: u64 = 1;
    pub(super) const STEP: u64 = 2;
    pub(super) const FILE_VERSION: u64 = 3;
    pub(super) const SUMMARY: u64 = 5;
    pub(super) const SESSION_LOG: u64 = 7;
    pub(super) const STATUS: u64 = 1;
    pub(super) const VALUE: u64 = 1;
    pub(super) const TAG: u64 = 1;
    pub(super) const SIMPLE_VALUE: u64 = 2;
}

/// `SessionLog.SessionStatus`: what earlier files say from this step on is void.
const START: u64 = 1;

/// An event file that is being written.
#[derive(Debug)]
pub(crate) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// A new file in `folder`. From step `first` on it holds what is so, whatever earlier files there say.
    pub(crate) fn new(folder: &Path, first: u64) -> io::Result<Self> {
        let seconds = now() as u64;
        let path = (0..)
            .map(|i| folder.join(format!("{PREFIX}{seconds:010}.colrow.{i}")))
            .find(|path| !path.exists())
            .unwrap_or_default();
        let mut events = Self { file: files::append_own(&path)?, path };
        let mut version = Message::default();
        version.double(field::WALL_TIME, now()).bytes(field::FILE_VERSION, b"brain.Event:2");
        events.write(&version)?;
        let mut status = Message::default();
        status.number(field::STATUS, START);
        let mut start = Message::default();
        start.double(field::WALL_TIME, now()).number(field::STEP, first).bytes(field::SESSION_LOG, &status.0);
        events.write(&start)?;
        Ok(events)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the numbers of a line of the log, those within it too, each under the line's kind and its own name.
    pub(crate) fn log(&mut self, line: &Value) -> io::Result<()> {
        let kind = line["kind"].as_str().unwrap_or("log");
        let mut scalars = Vec::new();
        collect(kind, line, &mut scalars);
        let mut summary = Message::default();
        for (tag, x) in scalars {
            let mut value = Message::default();
            value.bytes(field::TAG, tag.as_bytes()).float(field::SIMPLE_VALUE, x as f32);
            summary.bytes(field::VALUE, &value.0);
        }
        let mut event = Message::default();
        event.double(field::WALL_TIME, now()).number(field::STEP, line["step"].as_u64().unwrap_or(0));
        event.bytes(field::SUMMARY, &summary.0);
        self.write(&event)
    }

    fn write(&mut self, event: &Message) -> io::Result<()> {
        let length = (event.0.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked(&length).to_le_bytes());
        record.extend(&event.0);
        record.extend(masked(&event.0).to_le_bytes());
        self.file.write_all(&record)
    }
}

/// Numbers by name; those of an object within under its name and theirs.
fn collect(name: &str, value: &Value, scalars: &mut Vec<(String, f64)>) {
    match value {
        Value::Number(x) => scalars.extend(x.as_f64().map(|x| (name.to_owned(), x))),
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(key, _)| !["kind", "step"].contains(&key.as_str()));
            fields.for_each(|(key, value)| collect(&format!("{name}/{key}"), value, scalars));
        }
        _ => {}
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The checksum of a record.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protocol buffer.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut x: u64) -> &mut Self {
        while x >= 0x80 {
            self.0.push(x as u8 | 0x80);
            x >>= 7;
        }
        self.0.push(x as u8);
        self
    }

    fn key(&mut self, field: u64, wire: u64) -> &mut Self {
        self.varint(field << 3 | wire)
    }

    fn number(&mut self, field: u64, x: u64) -> &mut Self {
        self.key(field, 0).varint(x)
    }

    fn double(&mut self, field: u64, x: f64) -> &mut Self {
        self.key(field, 1).0.extend(x.to_le_bytes());
        self
    }

    fn float(&mut self, field: u64, x: f32) -> &mut Self {
        self.key(field, 5).0.extend(x.to_le_bytes());
        self
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.key(field, 2).varint(bytes.len() as u64).0.extend(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The first is the check value of CRC-32C, the second is TensorBoard's own `masked_crc32c`.
    #[test]
    fn checksums_are_tensorflows() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(masked(&24_u64.to_le_bytes()), 0x224b_7fa3);
    }

    #[test]
    fn a_line_becomes_scalars_by_kind_and_name() {
        let mut scalars = Vec::new();
        let line = json!({"kind": "eval", "step": 3, "loss": 0.5, "epoch": 1, "metrics": {"accuracy": 0.75}, "note": "x", "none": null});
        collect("eval", &line, &mut scalars);
        scalars.sort_by(|a, b| a.0.cmp(&b.0));
        let named = |name: &str, x| (name.to_owned(), x);
        assert_eq!(scalars, [named("eval/epoch", 1.0), named("eval/loss", 0.5), named("eval/metrics/accuracy", 0.75)]);
    }

    /// Field 1, wire type 1; field 2, varint 300; field 3, two bytes.
    #[test]
    fn fields_are_written_as_protocol_buffers() {
        let mut message = Message::default();
        message.double(1, 1.0).number(2, 300).bytes(3, b"ab").float(4, 0.5);
        let expected = [9, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x10, 0xac, 2, 0x1a, 2, b'a', b'b', 0x25, 0, 0, 0, 0x3f];
        assert_eq!(message.0, expected);
    }
}
