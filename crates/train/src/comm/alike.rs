//! That the processes of a run are alike: bits are the same only where program, recipe, data and arithmetic are.

use colrow_tensor::rng::Key;
use colrow_tensor::{Activation, Class, DType, Device, Error, Result};

use super::Together;
use crate::digests;
use crate::job::Job;
use crate::recipe::Recipe;

/// Refuses processes of other programs, recipes or arithmetic.
///
/// # Errors
/// Who differs, and in what.
pub(crate) fn check(recipe: &Recipe, together: &Together) -> Result<()> {
    if together.size() == 1 {
        return Ok(());
    }
    let program = std::env::current_exe().and_then(std::fs::read).map(|bytes| digests::of_bytes(&bytes));
    let program = program.unwrap_or_else(|_| "a program that cannot be read".to_owned());
    together.check_same("their program", &format!("version {} ({program})", env!("CARGO_PKG_VERSION")))?;
    check_recipes(recipe, together)?;
    together.check_same("their processor's instructions", colrow_tensor::instructions())?;
    together.check_same("their arithmetic", &probe(recipe))
}

/// Names the keys in which recipes differ.
fn check_recipes(recipe: &Recipe, together: &Together) -> Result<()> {
    let all = together.values(&recipe.to_toml())?;
    let Some(other) = all.iter().position(|text| *text != all[0]) else { return Ok(()) };
    let [mine, first] = [&all[other], &all[0]].map(|text| Recipe::parse(text, "recipe", &[]));
    let differences: Vec<String> = match (mine, first) {
        (Ok(mine), Ok(first)) => mine.differences(&first).iter().map(|d| format!("\n    {d}")).collect(),
        _ => Vec::new(),
    };
    let error = format!("the processes differ in their recipe: process {other} and process 0:{}", differences.concat());
    let error = Error::usage(error).hint("all processes of a run need the same recipe and the same --set");
    together.agree(Err(error))
}

/// Refuses processes that read other data.
///
/// # Errors
/// Who differs, and in what.
pub(crate) fn check_job(job: &Job, together: &Together) -> Result<()> {
    if together.size() == 1 {
        return Ok(());
    }
    for (print, what) in job.fingerprints().iter().zip(["their training data", "their development data"]) {
        together.check_same(what, &serde_json::to_string(print).unwrap_or_default())?;
    }
    Ok(())
}

/// A digest of what products, exponentials and sums give on this processor.
fn probe(recipe: &Recipe) -> String {
    let device = Device::cpu_with(recipe.train.precision);
    let random = |key: u64, shape: [usize; 2]| {
        let key = Key::new(key);
        let numbers: Vec<f32> = (0..shape[0] * shape[1]).map(|i| key.normal(i as u64) as f32).collect();
        device.tensor(Class::Workspace, &shape, &numbers)
    };
    // large enough for all that a product is cut into
    let (a, b) = (random(1, [800, 512]), random(2, [512, 448]));
    let mut c = device.zeros(Class::Workspace, DType::F32, &[800, 448]);
    device.kernels().matmul(&a, false, &b, false, 0.0, &mut c);
    device.kernels().activate(Activation::Gelu, None, &mut c);
    let mut norms = device.zeros(Class::Workspace, DType::F32, &[800]);
    device.kernels().row_norms(&c, &mut norms);
    let numbers = [c.to_vec::<f32>(), norms.to_vec::<f32>()].concat();
    digests::of_bytes(&numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}
