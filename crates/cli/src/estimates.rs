//! What `estimate` finds: bias and error by estimator.

use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) estimator: &'static str,
    pub(crate) slope: f64,
    pub(crate) slope_se: f64,
    pub(crate) bias: f64,
    pub(crate) rmse: f64,
}

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) estimators: Vec<Row>,
    pub(crate) rows: usize,
    pub(crate) drawn: usize,
    pub(crate) trials: u64,
    #[serde(skip)]
    pub(crate) x: String,
    #[serde(skip)]
    pub(crate) dz: String,
    /// Those of X and of dZ.
    #[serde(skip)]
    pub(crate) columns: [usize; 2],
}

/// What the columns say of an estimate Ĝ of the product G.
pub(crate) const COLUMNS: [(&str, &str); 3] = [
    (
        "slope",
        "mean of ⟨Ĝ, G⟩/‖G‖² over the draws, ± its standard error: 1 if the estimator is unbiased, less if it leaves rows out",
    ),
    ("bias", "‖mean Ĝ − G‖/‖G‖; of an unbiased estimator about rmse/√draws, and smaller with more draws"),
    ("rmse", "√(mean ‖Ĝ − G‖²)/‖G‖: how far a single draw is off"),
];
