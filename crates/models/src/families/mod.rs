//! The families that there are, a folder each: configuration and net.

pub mod bert;
pub mod llama;
pub mod t5;

use crate::family::Family;

/// All families. The first is that of a `config.json` without a `model_type`, as those of the first BERTs are.
pub static FAMILIES: &[&Family] =
    &[&bert::FAMILY, &t5::FAMILY, &llama::LLAMA, &llama::MISTRAL, &llama::QWEN2, &llama::QWEN3, &llama::SMOLLM3];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use colrow_autograd::glob_matches;
    use colrow_tensor::{DType, Device};

    use crate::config::Config;
    use crate::model::Model;

    #[test]
    fn the_published_system_samples_attention_outputs_feed_forwards_and_adapters() {
        let patterns = [
            "encoder.layer.*.output.dense",
            "encoder.layer.*.intermediate.dense",
            "*coder.block.*Attention.o",
            "*coder.block.*.DenseReluDense.w*",
            "*.lora",
        ];
        let bert =
            r#"{"hidden_size":6,"num_hidden_layers":2,"num_attention_heads":2,"intermediate_size":10,"vocab_size":5}"#;
        let t5 =
            r#"{"model_type":"t5","d_model":6,"d_ff":10,"num_layers":2,"vocab_size":5,"feed_forward_proj":"PROJ"}"#;
        for json in [bert.into(), t5.replace("PROJ", "relu"), t5.replace("PROJ", "gated-gelu")] {
            let config = Config::from_json(json.as_bytes(), Path::new("config.json")).unwrap();
            let mut model = Model::new(config, &Device::meta(1), DType::F32);
            let all = crate::lora::LoraConfig { targets: vec!["*".into()], ..Default::default() };
            crate::lora::adapt(&mut model, &all, 1).unwrap();
            for site in model.sites().iter().filter(|site| site.kind == crate::net::SiteKind::Linear) {
                let expected = patterns.iter().any(|pattern| glob_matches(pattern, &site.name));
                assert_eq!(site.in_paper, expected, "{}", site.name);
            }
        }
    }
}
