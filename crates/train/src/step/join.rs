//! The sum of the gradients of a step's shards, in an order that does not depend on who computed which: shard by shard,
//! `((g₀ + g₁) + g₂) + …`, each computed by itself and then added.
//!
//! A parameter's gradient is added as soon as it is final in its shard, so that a step of any number of shards holds one copy of the gradient,
//! beside the gradients of the shard under way that are not final yet; one shard holds its own alone. The price is paid by processes that share a step:
//! none may add up shards of its own before those that come first, so every shard's gradient travels. A balanced tree would let each process
//! send one sum, and a single one hold ⌊log₂ V⌋ sums of V shards that wait for others: two copies more of the gradient with 8 shards, five
//! with 64. Sums that no order changes (integers, or several floats a number) hold one to three copies more whatever V is.

use colrow_autograd::{ParamId, Params};
use colrow_tensor::Tensor;

/// Sums on the way.
#[derive(Debug)]
pub struct Join {
    /// By parameter; none where no shard so far had a gradient.
    sums: Vec<Option<Tensor>>,
}

impl Join {
    /// No sums yet.
    pub fn new(params: &Params) -> Self {
        Self { sums: params.iter().map(|_| None).collect() }
    }

    /// Adds a shard's gradient of a parameter; shards come in order. Gives the whole sum if the shard is the step's last.
    pub fn add(&mut self, last: bool, id: ParamId, gradient: Tensor) -> Option<Tensor> {
        let slot = &mut self.sums[id.index()];
        let sum = match slot.take() {
            Some(mut sum) => {
                let device = gradient.device();
                device.kernels().add(&gradient, &mut sum);
                sum
            }
            None => gradient,
        };
        if last {
            return Some(sum);
        }
        *slot = Some(sum);
        None
    }

    /// The whole sums of parameters that the last shard gave no gradient of.
    pub(super) fn rest(&mut self, params: &Params) -> Vec<(ParamId, Tensor)> {
        params.iter().filter_map(|(id, _)| Some((id, self.sums[id.index()].take()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{Class, DType, Device};

    use super::*;

    #[test]
    fn shards_are_added_one_after_the_other_and_one_sum_is_held() {
        let device = Device::cpu();
        let mut params = Params::new(&device, DType::F32);
        let id = params.add("w", &[1], false);
        params.add("never learned", &[1], false);
        for shards in 1..=20 {
            let mut join = Join::new(&params);
            // 24 bits that another order would round otherwise; some shards, the last among them, without a gradient
            let number = |i: usize| (i % 7 != 3).then(|| (Key::new(1).normal(i as u64) * 1e3) as f32);
            let (mut sum, mut want) = (None, None::<f32>);
            for i in 0..shards {
                let Some(x) = number(i) else { continue };
                want = Some(want.map_or(x, |sum| sum + x));
                sum = join.add(i + 1 == shards, id, device.tensor(Class::Gradients, &[1], &[x]));
                assert!(device.meter().live().gradients <= 4, "{shards} shards");
            }
            let rest = join.rest(&params);
            assert!(rest.len() == usize::from(number(shards - 1).is_none()));
            let sum = sum.or(rest.into_iter().map(|(_, sum)| sum).next());
            assert_eq!(sum.map(|sum| sum.to_f64()[0] as f32), want, "{shards} shards");
        }
    }
}
