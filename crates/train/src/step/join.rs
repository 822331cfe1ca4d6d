//! The sum of the gradients of a step's shards, in an order that does not depend on who computed which: shard by shard,
//! `((g₀ + g₁) + g₂) + …`, each computed by itself and then added.
//!
//! A parameter's gradient is added as soon as it is final in its shard, so that a step of any number of shards holds one copy of the gradient,
//! beside the gradients of the shard under way that are not final yet; one shard holds its own alone.
//!
//! Processes that share a step take its shards in rounds: of W processes, each has one of W shards that follow each other, and every process adds up its
//! part of the weights over the round's shards, in their order, before the next round ([`Spread`]). A process holds one shard's gradient and the sum of its
//! part, whatever the number of shards. Runs of neighbouring shards to each process, or a balanced tree, would have processes hold several
//! gradients that wait for those that come first.

use std::sync::Arc;

use colrow_autograd::{ParamId, Params};
use colrow_tensor::{Result, Tensor};

use crate::comm::Spread;

/// Sums on the way.
#[derive(Debug)]
pub struct Join {
    /// By parameter, or this process's part of it; none where no shard so far had a gradient.
    sums: Vec<Option<Tensor>>,
    shared: Option<Shared>,
}

/// A step that several processes share.
#[derive(Debug)]
struct Shared {
    spread: Arc<Spread>,
    /// The gradients of this process's shard.
    own: Vec<Option<Tensor>>,
    /// Which parameters any shard had a gradient of.
    present: Vec<bool>,
}

impl Join {
    /// No sums yet.
    pub fn new(params: &Params, spread: Option<Arc<Spread>>) -> Self {
        let none = || params.iter().map(|_| None).collect();
        let shared = |spread| Shared { spread, own: none(), present: vec![false; params.len()] };
        Self { sums: none(), shared: spread.map(shared) }
    }

    /// Adds a shard's gradient of a parameter; shards come in order. Gives the whole sum if the shard is the step's last, and no other process
    /// has a part in it.
    pub fn add(&mut self, last: bool, id: ParamId, gradient: Tensor) -> Option<Tensor> {
        if let Some(shared) = &mut self.shared {
            shared.own[id.index()] = Some(gradient);
            return None;
        }
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

    /// Ends a round of so many shards, of which each process had one at most.
    ///
    /// # Errors
    /// Processes that are gone or do not answer.
    pub fn end_round(&mut self, shards: usize) -> Result<()> {
        let Some(Shared { spread, own, present }) = &mut self.shared else { return Ok(()) };
        let flags: Vec<u8> = own.iter().map(|gradient| u8::from(gradient.is_some())).collect();
        let all = spread.together().all(&flags)?;
        let of_shards: Vec<Vec<bool>> =
            all.iter().take(shards).map(|flags| flags.iter().map(|&flag| flag != 0).collect()).collect();
        spread.add_up(own, &of_shards, &mut self.sums)?;
        own.iter_mut().for_each(|gradient| *gradient = None);
        for flags in of_shards {
            present.iter_mut().zip(flags).for_each(|(any, flag)| *any |= flag);
        }
        Ok(())
    }

    /// The parameters that other processes update too, once the step's weights are to be handed out.
    pub fn present(&self) -> Option<&[bool]> {
        self.shared.as_ref().map(|shared| &shared.present[..])
    }

    /// The whole sums of parameters that the last shard gave no gradient of, or of all where several processes share the step.
    pub(super) fn rest(&mut self, params: &Params) -> Vec<(ParamId, Tensor)> {
        params.iter().filter_map(|(id, _)| Some((id, self.sums[id.index()].take()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{Class, DType, Device, UPDATE_BLOCK};

    use super::*;
    use crate::comm::tests::each;

    #[test]
    fn shards_are_added_one_after_the_other_and_one_sum_is_held() {
        let device = Device::cpu();
        let mut params = Params::new(&device, DType::F32);
        let id = params.add("w", &[1], false);
        params.add("never learned", &[1], false);
        for shards in 1..=20 {
            let mut join = Join::new(&params, None);
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

    /// Parts of all processes together are the sums of one, to the bit, and no process holds more than a shard's gradient and its part.
    #[test]
    fn processes_add_up_what_one_would() {
        let lengths = [3, 5 * UPDATE_BLOCK / 2, 1, UPDATE_BLOCK + 7];
        let params = |device: &Device| {
            let mut params = Params::new(device, DType::F32);
            let ids = lengths.map(|length| params.add("w", &[length], false));
            (params, ids)
        };
        let gradient = |device: &Device, shard: usize, param: usize| {
            // some shards without a gradient of some parameters
            let key = Key::new(1).child(shard as u64).child(param as u64);
            let numbers: Vec<f32> = (0..lengths[param]).map(|i| (key.normal(i as u64) * 1e3) as f32).collect();
            ((shard + param) % 5 != 3).then(|| device.tensor(Class::Gradients, &[lengths[param]], &numbers))
        };
        for shards in [1, 2, 3, 7] {
            let device = Device::cpu();
            let (alone, ids) = params(&device);
            let mut join = Join::new(&alone, None);
            let mut want = lengths.map(|_| None);
            for shard in 0..shards {
                for (i, &id) in ids.iter().enumerate() {
                    let Some(gradient) = gradient(&device, shard, i) else { continue };
                    if let Some(sum) = join.add(shard + 1 == shards, id, gradient) {
                        want[i] = Some(sum.to_vec::<f32>());
                    }
                }
            }
            join.rest(&alone).into_iter().for_each(|(id, sum)| want[id.index()] = Some(sum.to_vec::<f32>()));
            for size in 2..=4 {
                let parts = each(size, |together| {
                    let device = Device::cpu();
                    let (params, ids) = params(&device);
                    let rank = together.rank();
                    let spread = Arc::new(Spread::new(together, &params));
                    let mut join = Join::new(&params, Some(spread.clone()));
                    for round in (0..shards).collect::<Vec<_>>().chunks(size) {
                        for (i, &id) in ids.iter().enumerate() {
                            let own = round.get(rank).and_then(|&shard| gradient(&device, shard, i));
                            own.map(|own| join.add(false, id, own));
                        }
                        join.end_round(round.len()).unwrap();
                    }
                    let sums: Vec<_> = join.rest(&params).into_iter().map(|(id, sum)| (id.index(), sum)).collect();
                    let most: usize = sums.iter().map(|(_, sum)| sum.len()).sum();
                    assert!(device.meter().live().gradients == 4 * most && most < lengths.iter().sum());
                    sums.into_iter().map(|(i, sum)| (i, spread.part(i), sum.to_vec::<f32>())).collect::<Vec<_>>()
                });
                let mut found = lengths.map(|_| None);
                for (i, part, sum) in parts.into_iter().flatten() {
                    assert_eq!(part.len(), sum.len());
                    found[i].get_or_insert_with(|| vec![f32::NAN; lengths[i]])[part].copy_from_slice(&sum);
                }
                assert!(found == want, "{shards} shards, {size} processes");
            }
        }
    }
}
