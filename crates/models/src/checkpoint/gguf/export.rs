//! From a folder of Hugging Face's layout to a GGUF file.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::Path;

use colrow_tensor::{Error, Result};
use serde_json::{Map, Value as Json};

use super::blocks::Format;
use super::sizes::Sizes;
use super::tensors::{Place, places};
use super::value::Metadata;
use super::vocabulary::Vocabulary;
use super::write::{Written, write};
use super::{Told, count, rope};
use crate::apart;
use crate::checkpoint::names::{ADAPTER_CONFIG_FILE, CONFIG_FILE};
use crate::checkpoint::safetensors::Pieces;
use crate::checkpoint::weights::Weights;
use crate::files::{first_ten, read_json_bytes, shape_text};

/// What was exported.
#[derive(Clone, Debug)]
pub struct Exported {
    /// As GGUF calls the model's architecture.
    pub architecture: &'static str,
    /// How the tensors are stored.
    pub formats: Vec<(Format, usize)>,
    /// Numbers of all tensors.
    pub parameters: u64,
    /// Length of the file.
    pub bytes: u64,
    /// What of the model GGUF has no words for.
    pub unsaid: Vec<String>,
}

/// Writes the model of the folder `dir` as the GGUF file `out`, which is not there yet; its matrices in `format`, one of F32, F16, BF16 and
/// Q8_0, and all else in F32. `tell` hears how many numbers of how many are written.
///
/// # Errors
/// A model of another family, or one that GGUF has no words for; a number that is too large for the format; a file that is there, or cannot be written.
pub fn export(dir: &Path, out: &Path, format: Format, tell: &mut dyn FnMut(u64, u64)) -> Result<Exported> {
    if out.symlink_metadata().is_ok() {
        return Err(Error::usage("--out: this file exists, and is not written over")
            .at(out.display())
            .hint("choose another name, or remove it"));
    }
    apart::check_file(out, [dir])?;
    let path = dir.join(CONFIG_FILE);
    if !path.exists() && dir.join(ADAPTER_CONFIG_FILE).exists() {
        return Err(Error::usage("--model: expected a whole model, found an adapter")
            .at(dir.display())
            .hint(format!("merge it into its base first: colrow merge --model {} --out FOLDER", dir.display())));
    }
    let config: Map<String, Json> = serde_json::from_slice(&read_json_bytes(&path)?)
        .map_err(|e| Error::new(format!("expected an object: {e}")).at(path.display()))?;
    let (sizes, unsaid) = Sizes::from_json(&config, &path)?;
    let weights = Weights::open(dir)?;
    let places = found(&weights, &sizes).map_err(|e| e.at(dir.display()))?;
    let vocabulary = Vocabulary::of_folder(dir, &config, sizes.vocab)?;

    let mut metadata = Metadata::default();
    sizes.put_into(&mut metadata);
    vocabulary.put_into(&mut metadata, sizes.vocab);
    metadata.set("general.type", "model");
    if let Some(name) = apart::seen(dir).file_name() {
        metadata.set("general.name", &*name.to_string_lossy());
    }
    let (file_type, quantised) = match format {
        Format::F32 => (0, false),
        Format::F16 => (1, false),
        Format::Q8_0 => (7, true),
        Format::BF16 => (32, false),
        other => return Err(Error::usage(format!("expected F32, F16, BF16 or Q8_0, found {}", other.name()))),
    };
    metadata.set("general.file_type", file_type);
    if quantised {
        metadata.set("general.quantization_version", 2);
    }

    let parameters = places.iter().map(|place| place.shape.iter().product::<usize>() as u64).sum();
    let told = RefCell::new(Told { done: 0, of: parameters, tell });
    let read: Vec<_> = places.iter().map(|place| Read { weights: &weights, place, told: &told }).collect();
    // programs read norms and biases in single precision only
    let stored = |place: &Place| match place.shape[..] {
        [_, width] if width.is_multiple_of(format.block()) => format,
        _ => Format::F32,
    };
    let mut tensors: Vec<_> = (places.iter().zip(&read))
        .map(|(place, from)| Written { name: &place.gguf, shape: &place.shape, format: stored(place), from })
        .collect();
    let divisors = sizes.divisors().map(Numbers);
    let shape = divisors.as_ref().map(|divisors| [divisors.0.len()]);
    if let (Some(divisors), Some(shape)) = (&divisors, &shape) {
        tensors.push(Written { name: rope::FACTORS, shape, format: Format::F32, from: divisors });
    }
    let bytes = write(out, &metadata, &tensors)?;
    let formats = count(tensors.iter().map(|tensor| tensor.format));
    Ok(Exported { architecture: sizes.architecture.name(), formats, parameters, bytes, unsaid })
}

/// The tensors of a decoder, all of which the checkpoint has.
fn found(weights: &Weights, sizes: &Sizes) -> Result<Vec<Place>> {
    let places = places(sizes);
    let mut missing = Vec::new();
    for place in &places {
        match weights.shape(&place.key) {
            Some(shape) if shape == place.shape => {}
            Some(shape) => {
                let (expected, found) = (shape_text(&place.shape), shape_text(shape));
                return Err(Error::new(format!("{}: expected shape {expected}, found {found}", place.key)));
            }
            None => missing.push(place.key.as_str()),
        }
    }
    if !missing.is_empty() {
        return Err(Error::new(format!("tensors are missing: {}", first_ten(&missing))));
    }
    // a tied head is the embedding once more, and old checkpoints keep the frequencies, which follow from the configuration
    let ours = |key: &str| {
        key == "lm_head.weight" || key.ends_with("rotary_emb.inv_freq") || places.iter().any(|place| place.key == key)
    };
    if weights.names().count() > places.len() {
        let others: Vec<_> = weights.names().filter(|key| !ours(key)).collect();
        if !others.is_empty() {
            let name = sizes.architecture.name();
            return Err(Error::new(format!("tensors that no model of type {name} has: {}", first_ten(&others))));
        }
    }
    Ok(places)
}

struct Numbers(Vec<f32>);

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} numbers", self.0.len())
    }
}

impl Pieces for Numbers {
    fn pieces(&self, each: &mut dyn FnMut(&[f32]) -> io::Result<()>) -> io::Result<()> {
        each(&self.0)
    }
}

/// A tensor of a checkpoint, as GGUF has it.
struct Read<'a, 't> {
    weights: &'a Weights,
    place: &'a Place,
    told: &'a RefCell<Told<'t>>,
}

impl fmt::Debug for Read<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Read({:?})", self.place)
    }
}

impl Pieces for Read<'_, '_> {
    fn pieces(&self, each: &mut dyn FnMut(&[f32]) -> io::Result<()>) -> io::Result<()> {
        let Place { key, shape, order, .. } = self.place;
        let unit = order.unit(shape);
        let mut written = Ok(());
        let (mut held, mut turned) = (Vec::new(), Vec::new());
        let part = |_: usize, part: &[f32]| {
            if written.is_err() {
                return;
            }
            let Some(unit) = unit else {
                written = each(part);
                return self.told.borrow_mut().more(part.len());
            };
            held.extend_from_slice(part);
            let whole = held.len() / unit * unit;
            for head in held[..whole].chunks(unit) {
                order.to_pairs(head, &mut turned);
                if written.is_ok() {
                    written = each(&turned);
                }
            }
            held.drain(..whole);
            self.told.borrow_mut().more(part.len());
        };
        let read = self.weights.read_parts(key, shape.iter().product(), part);
        read.map_err(|e| io::Error::other(e.to_string()))?;
        written
    }
}
