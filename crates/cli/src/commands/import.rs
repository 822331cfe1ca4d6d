//! `colrow import`: a GGUF file as a folder of Hugging Face's layout.

use std::path::PathBuf;

use clap::ValueEnum;
use colrow_models::checkpoint::gguf::described;
use colrow_models::checkpoint::gguf::import::{ImportOptions, Imported, import};
use colrow_models::checkpoint::weights::Dtype;
use colrow_models::{apart, atomic};
use colrow_tensor::{Error, Result};
use serde_json::json;

use crate::commands::formats;
use crate::output::{Counter, print, print_json};

/// Make a model folder of a GGUF file: weights, configuration, tokenizer with its chat template.
///
/// Models of the architectures llama (Llama, Mistral, SmolLM2), qwen2 and qwen3, of any bits that llama.cpp's usual files have; docs/gguf.md lists them.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The GGUF file.
    file: PathBuf,
    /// Folder to write, new or empty: a model in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How weights are written [default: f16 and bf16 as they are, else f32].
    #[arg(long)]
    dtype: Option<Precise>,
    /// Take the tokenizer's files from this folder, not from the GGUF file.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Precise {
    F32,
    Bf16,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // before minutes of reading
    atomic::check_dir(&args.out)?;
    if let Some(dir) = &args.tokenizer {
        if !dir.is_dir() {
            return Err(Error::usage("--tokenizer: expected a folder with tokenizer.json").at(dir.display()));
        }
        apart::check_folder(&args.out, "the tokenizer", dir)?;
    }
    let dtype = args.dtype.map(|dtype| match dtype {
        Precise::F32 => Dtype::F32,
        Precise::Bf16 => Dtype::BF16,
    });
    let mut counter = Counter::new("import", "numbers");
    let wanted = ImportOptions { dtype, tokenizer: args.tokenizer.as_deref() };
    let imported = import(&args.file, &args.out, wanted, &mut |done, of| counter.set(done, of))?;
    drop(counter);
    let Imported { architecture, formats: from, parameters, dtype } = imported;
    let dtype = dtype.to_string().to_lowercase();
    if args.json {
        return print_json(&json!({"model": args.out, "architecture": architecture, "parameters": parameters,
            "dtype": dtype, "tensors": formats(&from)}));
    }
    let from = described(&from);
    print(&format!("{parameters} numbers as {dtype}, from {from}\nthe model is in {}", args.out.display()))
}
