//! How the weights that are trained are cut over processes: each holds the optimizer's states of one run of their elements, and updates those.

use std::ops::Range;

use colrow_autograd::Params;
use colrow_tensor::UPDATE_BLOCK;

/// Elements of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The parameter's number.
    pub param: usize,
    /// Which of its elements.
    pub elements: Range<usize>,
}

/// Whose elements are whose. All trained elements stand one behind the other in the order of parameters; each process has a run of them, which begins
/// with a parameter or at a multiple of [`UPDATE_BLOCK`] within one, so that blocks of moments and of sums of squares are whole.
#[derive(Clone, Debug)]
pub struct Cut {
    /// By process: its spans, in order, none of them empty.
    spans: Vec<Vec<Span>>,
}

impl Cut {
    /// Cuts parameters of these lengths, 0 for those that are not trained, into runs of about equal length.
    pub fn new(lengths: &[usize], processes: usize) -> Self {
        let total: usize = lengths.iter().sum();
        let (mut spans, mut rank, mut done) = (vec![Vec::<Span>::new(); processes], 0, 0_usize);
        for (param, &length) in lengths.iter().enumerate() {
            let mut first = 0;
            while first < length {
                // where the next process begins
                let end = (total as u128 * (rank as u128 + 1) / processes as u128) as usize;
                let left = end.saturating_sub(done);
                if rank + 1 < processes && left < UPDATE_BLOCK.div_ceil(2) && left < length - first {
                    rank += 1;
                    continue;
                }
                let blocks = (left + UPDATE_BLOCK / 2) / UPDATE_BLOCK;
                let size = match rank + 1 == processes {
                    true => length - first,
                    false => (blocks.max(1) * UPDATE_BLOCK).min(length - first),
                };
                match spans[rank].last_mut() {
                    Some(span) if span.param == param => span.elements.end += size,
                    _ => spans[rank].push(Span { param, elements: first..first + size }),
                }
                first += size;
                done += size;
            }
        }
        Self { spans }
    }

    /// Cuts the trained ones among parameters.
    pub fn of(params: &Params, processes: usize) -> Self {
        let lengths: Vec<usize> = params.iter().map(|(_, p)| if p.trainable { p.value.len() } else { 0 }).collect();
        Self::new(&lengths, processes)
    }

    /// The spans of a process.
    pub fn spans(&self, rank: usize) -> &[Span] {
        &self.spans[rank]
    }

    /// A process's elements of a parameter; empty if it has none.
    pub fn part(&self, rank: usize, param: usize) -> Range<usize> {
        let found = self.spans[rank].binary_search_by_key(&param, |span| span.param);
        found.map_or(0..0, |i| self.spans[rank][i].elements.clone())
    }

    /// The elements of each process.
    pub fn lengths(&self) -> Vec<usize> {
        self.spans.iter().map(|spans| spans.iter().map(|span| span.elements.len()).sum()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_element_has_one_process(
            lengths in prop::collection::vec(prop_oneof![Just(0), 1_usize..300, 0_usize..20 * UPDATE_BLOCK], 0..40),
            processes in 1_usize..65,
        ) {
            let cut = Cut::new(&lengths, processes);
            let mut spans = (0..processes).flat_map(|rank| cut.spans(rank)).cloned();
            for (param, &length) in lengths.iter().enumerate() {
                let mut next = 0;
                while next < length {
                    let span = spans.next().unwrap();
                    prop_assert_eq!((span.param, span.elements.start), (param, next));
                    prop_assert!(span.elements.start.is_multiple_of(UPDATE_BLOCK) && !span.elements.is_empty());
                    next = span.elements.end;
                }
                prop_assert_eq!(next, length);
            }
            prop_assert_eq!(spans.next(), None);
            // no process has more than its share and what one block, or one parameter that is smaller, adds
            let (total, most) = (lengths.iter().sum::<usize>(), cut.lengths().into_iter().max().unwrap_or(0));
            prop_assert!(most <= total / processes + 2 * UPDATE_BLOCK, "{most} of {total}");
            for rank in 0..processes {
                let parts = (0..lengths.len()).map(|param| cut.part(rank, param)).filter(|part| !part.is_empty());
                let spans = cut.spans(rank).iter().map(|span| span.elements.clone());
                prop_assert!(parts.eq(spans));
            }
        }
    }

    #[test]
    fn one_process_has_all() {
        let cut = Cut::new(&[5, 0, 3 * UPDATE_BLOCK + 1], 1);
        let of = |param, elements| Span { param, elements };
        assert_eq!(cut.spans(0), [of(0, 0..5), of(2, 0..3 * UPDATE_BLOCK + 1)]);
    }
}
