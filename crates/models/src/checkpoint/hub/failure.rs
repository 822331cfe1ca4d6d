//! Why a file of the hub could not be had, and what the user is told of it.

use colrow_tensor::Error;

use super::PASS_A_FOLDER;
use crate::checkpoint::names::{CONFIG_FILE, WEIGHTS_FILE};

/// Why a file could not be fetched, as far as it makes a difference to the user.
#[derive(Debug)]
pub(super) enum Failure {
    /// The repository has no such file, or there is no such repository or revision.
    Absent,
    /// The hub does not show it to everybody, or there is no such repository: it does not say which.
    Forbidden,
    /// The hub gave another answer.
    Refused(String),
    /// No answer.
    Unreachable(String),
    /// An answer that ends before its end.
    Broken(String),
    /// The file could not be kept.
    Local(String),
}

impl Failure {
    /// The error for the user who asked for `file` of `model`.
    pub(super) fn explain(self, model: &str, revision: &str, file: &str) -> Error {
        let what = match self {
            Self::Absent if file == CONFIG_FILE => {
                format!("no folder {model:?}, and no hub repository of that name with a {file} in revision {revision}")
            }
            Self::Absent => {
                let hint = if file == WEIGHTS_FILE {
                    "only safetensors are read: convert the weights in transformers, and pass the folder"
                } else {
                    PASS_A_FOLDER
                };
                return Error::new(format!("the hub repository {model} has no {file} in revision {revision}"))
                    .hint(hint);
            }
            Self::Forbidden => {
                return Error::new(format!(
                    "no folder {model:?}, and the hub repository {model} does not exist or is not public"
                ))
                .hint("check the name; for a private or gated one set HF_TOKEN, or pass a local folder");
            }
            Self::Refused(e) => format!("the hub did not give {file} of {model}: {e}"),
            Self::Broken(e) => {
                return Error::new(format!("{file} of {model} did not arrive whole: {e}"))
                    .hint("try again: what has arrived of large files is kept");
            }
            Self::Unreachable(e) => format!("no folder {model:?}, and the hub cannot be reached: {e}"),
            Self::Local(e) => format!("{file} of {model} cannot be kept in the cache: {e}"),
        };
        Error::new(what).hint(PASS_A_FOLDER)
    }
}
