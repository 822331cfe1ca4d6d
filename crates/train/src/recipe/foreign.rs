//! What the keys of other programs are called here: `TrainingArguments`, `LoraConfig` and the example scripts of `transformers`, Axolotl.

/// Names there, and what to say of them.
const NAMES: &[(&[&str], &str)] = &[
    (&["learning_rate"], "here it is `optim.lr`"),
    (&["num_train_epochs", "num_epochs", "max_epochs"], "here it is `train.epochs`"),
    (&["max_steps", "max_train_steps", "num_train_steps"], "here it is `train.steps`"),
    (
        &[
            "per_device_train_batch_size",
            "per_gpu_train_batch_size",
            "train_batch_size",
            "micro_batch_size",
            "batch_size",
        ],
        "here it is `train.batch`",
    ),
    (&["per_device_eval_batch_size", "eval_batch_size"], "evaluations use `train.batch` too"),
    (&["gradient_accumulation_steps"], "here it is `train.accumulate`"),
    (&["adam_beta1"], "here it is `optim.beta1`"),
    (&["adam_beta2"], "here it is `optim.beta2`"),
    (&["adam_epsilon"], "here it is `optim.eps`"),
    (&["max_grad_norm", "gradient_clipping"], "here it is `optim.clip`"),
    (&["warmup_ratio"], "here it is `optim.warmup`, below 1 a share of all steps"),
    (&["warmup_steps", "num_warmup_steps"], "here it is `optim.warmup`, from 1 on a number of steps"),
    (&["lr_scheduler_type", "lr_scheduler"], "here it is `optim.schedule`: \"linear\", \"cosine\" or \"constant\""),
    (
        &["max_seq_length", "max_source_length", "model_max_length", "sequence_len", "cutoff_len"],
        "here it is `data.max_length`",
    ),
    (&["generation_max_length"], "here it is `data.max_target_length`"),
    (&["fp16", "bf16", "tf32", "mixed_precision", "half_precision_backend"], "here it is `train.precision = \"bf16\"`"),
    (&["output_dir"], "here it is `output`"),
    (&["logging_steps"], "here it is `train.log_every`"),
    (&["eval_steps", "eval_strategy", "evaluation_strategy"], "here it is `train.eval_every`"),
    (&["save_steps", "save_strategy"], "here it is `train.save_every`"),
    (&["save_total_limit"], "here it is `train.keep_checkpoints`"),
    (&["metric_for_best_model"], "here it is `train.best_metric`"),
    (&["early_stopping_patience"], "here it is `train.patience`"),
    (&["load_best_model_at_end"], "the run's model/ is always the best"),
    (&["gradient_checkpointing", "use_gradient_checkpointing"], "here it is `keep.policy = \"recompute\"`"),
    (&["data_seed"], "here it is `seed`"),
    (&["model_name_or_path", "pretrained_model_name_or_path", "base_model", "model_name"], "here it is `model.path`"),
    (&["model_revision"], "here it is `model.revision`"),
    (&["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"], "here it is `model.dropout`"),
    (&["dataset_name", "dataset", "datasets", "train_file", "train_data", "data_path"], "here it is `data.train`"),
    (&["validation_file", "test_file", "eval_file", "validation_data"], "here it is `data.dev`"),
    (&["text_column", "text_column_name", "text_field", "sentence1_key"], "here it is `data.text`"),
    (&["sentence2_key"], "here it is `data.pair`"),
    (&["label_column", "label_column_name", "label_names"], "here it is `data.label`"),
    (&["max_train_samples"], "here it is `data.limit`"),
    (&["validation_split_percentage", "val_set_size", "test_size"], "here it is `data.dev_share`"),
    (&["task_name"], "here it is `task`"),
    (&["num_labels", "id2label", "label2id"], "the labels are those of the training data"),
    (&["r", "lora_r", "lora_rank"], "here it is `lora.rank`"),
    (&["lora_alpha"], "here it is `lora.alpha`"),
    (&["lora_dropout"], "here it is `lora.dropout`"),
    (&["use_rslora"], "here it is `lora.rank_stabilised`"),
    (&["target_modules", "lora_target_modules"], "here it is `lora.targets`"),
    (&["peft_type", "use_peft", "adapter"], "here it is `train.method = \"lora\"`"),
    (&["bias"], "biases alone are trained by `train.method = \"bitfit\"`"),
    (&["resume_from_checkpoint"], "here it is the argument --resume"),
    (
        &["group_by_length", "pad_to_max_length", "padding", "pad_to_multiple_of", "sample_packing", "packing"],
        "nothing is padded here; leave it out",
    ),
    (
        &["report_to", "logging_dir", "run_name", "push_to_hub", "hub_model_id"],
        "there is nothing like it here; leave it out",
    ),
    (
        &["dataloader_num_workers", "remove_unused_columns", "no_cuda", "use_cpu", "ddp_find_unused_parameters"],
        "there is nothing like it here; leave it out",
    ),
];

/// What to say of a key that is another program's.
pub(super) fn advice(key: &str) -> Option<&'static str> {
    let plain = key.to_ascii_lowercase().replace('-', "_");
    NAMES.iter().find(|(names, _)| names.contains(&plain.as_str())).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::keys;

    #[test]
    fn advice_names_keys_that_there_are() {
        let keys = keys();
        let mut seen = std::collections::BTreeSet::new();
        for (names, advice) in NAMES {
            // a key that is the same here needs no advice
            for name in *names {
                assert!(!keys.iter().any(|key| key.rsplit('.').next() == Some(name)), "{name}");
                assert!(seen.insert(name), "{name} is there twice");
            }
            for named in advice.split('`').skip(1).step_by(2) {
                let key = named.split(" = ").next().unwrap_or_default();
                assert!(keys.iter().any(|k| k == key), "{advice}");
            }
        }
        assert_eq!(advice("Learning-Rate"), Some("here it is `optim.lr`"));
        assert_eq!(advice("lr"), None);
    }
}
