//! A saved model on the command line, and what its folder says of it.

use std::path::{Path, PathBuf};

use colrow_models::checkpoint::hub::{self, Needs};
use colrow_models::checkpoint::load::{self, Anew, Loaded};
use colrow_models::checkpoint::names::ADAPTER_CONFIG_FILE;
use colrow_models::config::Config;
use colrow_models::families::FAMILIES;
use colrow_tensor::{BaseWeights, DType, Device, Error, Precision, Result};
use colrow_train::usage::Usage;

/// A fine-tuned model as commands take it.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// Model folder or hub id, or the folder of an adapter or of a run.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Base model of the adapter [default: the one that its adapter_config.json names].
    #[arg(long, value_name = "DIR")]
    base: Option<String>,
}

impl ModelArgs {
    /// The model with its adapter, if it is one's folder. Its products multiply what `precision` says, or what it was trained with.
    pub(crate) fn load(&self, precision: Option<Precision>) -> Result<Used> {
        self.load_onto(BaseWeights::F32, precision)
    }

    /// As [`ModelArgs::load`]; an adapter's base model has the numbers that its codes mean.
    pub(crate) fn load_onto(&self, codes: BaseWeights, precision: Option<Precision>) -> Result<Used> {
        let device = |usage: &Option<Usage>| device(precision, usage);
        let folder = hub::of_run(&self.model);
        if folder.join(ADAPTER_CONFIG_FILE).exists() {
            return adapted(codes, folder, self.base.as_deref(), device);
        }
        if self.base.is_some() {
            return Err(Error::usage(format!("--base: expected an adapter, found no {ADAPTER_CONFIG_FILE}"))
                .at(self.model.display())
                .hint("leave out --base for a whole model"));
        }
        let dir = hub::resolve(&self.model.to_string_lossy(), "main", Needs::Weights)?;
        let usage = Usage::open(&dir)?;
        let loaded = load::model(&dir, Config::open(&dir)?, &device(&usage), DType::F32, 0, Anew::default())?;
        Used::new(dir, usage, loaded)
    }

    /// The model as the base of an adapter.
    pub(crate) fn with_adapter(&self, adapter: &Path) -> Result<Used> {
        let folder = hub::of_run(adapter);
        if !folder.join(ADAPTER_CONFIG_FILE).exists() {
            return Err(Error::usage(format!(
                "--adapter: expected the folder of an adapter, found no {ADAPTER_CONFIG_FILE}"
            ))
            .at(adapter.display()));
        }
        adapted(BaseWeights::F32, folder, Some(&self.model.to_string_lossy()), |usage| device(None, usage))
    }
}

/// Multiplies what `precision` says, or what the model was trained with.
fn device(precision: Option<Precision>, usage: &Option<Usage>) -> Device {
    let trained = usage.as_ref().map(|usage| usage.precision);
    Device::cpu_with(precision.or(trained).unwrap_or(Precision::F32))
}

fn adapted(
    codes: BaseWeights,
    folder: PathBuf,
    base: Option<&str>,
    device: impl Fn(&Option<Usage>) -> Device,
) -> Result<Used> {
    let usage = Usage::open(&folder)?;
    let relabel = |config: &mut Config| usage.iter().for_each(|usage| usage.relabel(config));
    let loaded = load::adapted_onto(codes, &folder, base, FAMILIES, relabel, &device(&usage), DType::F32)?;
    Used::new(folder, usage, loaded)
}

/// A model, its folder, and what its run was told, if the folder says it.
pub(crate) struct Used {
    pub(crate) dir: PathBuf,
    pub(crate) usage: Option<Usage>,
    pub(crate) loaded: Loaded,
}

impl Used {
    fn new(dir: PathBuf, usage: Option<Usage>, loaded: Loaded) -> Result<Self> {
        if let Some(usage) = &usage {
            usage.check(&loaded.model.config, &dir)?;
        }
        Ok(Self { dir, usage, loaded })
    }
}
