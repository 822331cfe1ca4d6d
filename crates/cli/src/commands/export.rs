//! `colrow export`: a model folder as a GGUF file.

use std::path::PathBuf;

use clap::ValueEnum;
use colrow_models::atomic;
use colrow_models::checkpoint::gguf::blocks::Format;
use colrow_models::checkpoint::gguf::described;
use colrow_models::checkpoint::gguf::export::export;
use colrow_models::checkpoint::hub;
use colrow_tensor::Result;
use serde_json::json;

use crate::commands::formats;
use crate::output::{Counter, print, print_json, warn};

/// Make a GGUF file of a model folder, for llama.cpp and the programs built on it.
///
/// Models of type llama, mistral, qwen2 and qwen3 with a byte-level or SentencePiece tokenizer. Norms and biases stay f32. Merge an
/// adapter first, with colrow merge.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folder, or the folder of a run.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// File to write, which is not there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How matrices are stored.
    #[arg(long = "type", default_value = "f16")]
    format: Kind,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    F32,
    F16,
    Bf16,
    /// Eight bits, and a scale for each 32 numbers.
    #[value(name = "q8_0")]
    Q8,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.out.symlink_metadata().is_err() {
        // before minutes of reading
        atomic::check_file(&args.out)?;
    }
    let format = match args.format {
        Kind::F32 => Format::F32,
        Kind::F16 => Format::F16,
        Kind::Bf16 => Format::BF16,
        Kind::Q8 => Format::Q8_0,
    };
    let mut counter = Counter::new("export", "numbers");
    let exported = export(&hub::of_run(&args.model), &args.out, format, &mut |done, of| counter.set(done, of))?;
    drop(counter);
    exported.unsaid.iter().for_each(|unsaid| warn(unsaid));
    if args.json {
        return print_json(&json!({"file": args.out, "architecture": exported.architecture,
            "parameters": exported.parameters, "bytes": exported.bytes, "tensors": formats(&exported.formats)}));
    }
    print(&format!("{}\nthe model is in {}", described(&exported.formats), args.out.display()))
}
