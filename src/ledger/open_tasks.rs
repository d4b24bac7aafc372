//! How many tasks of each owner and type are open, as far as this replica has to know: an upper
//! bound, so that a batch counts only where a bound reaches the maximum.
//!
//! [`OpenTasks::to_count`] names the pairs that a batch has to count under the lock,
//! [`OpenTasks::fill_in`] gives the bounds of the others, and [`OpenTasks::take_over`] moves the
//! bounds on once the batch is committed.
//!
//! The rule: a bound is never below the number of open tasks. It is the last count, plus the tasks
//! that this replica opened since, plus one for each leaf of another replica: a leaf opens one task
//! at most. Ends do not lower it; the next count does. A pair is counted if its bound and the
//! tasks of the batch together exceed the maximum, so each decision is the same as with a count.
//! Nothing here fails. The appender calls this module; `store::append` counts.

use std::collections::{BTreeMap, HashMap};

use super::locked::owner_and_type;
use crate::domain::task::Task;

/// An owner and a type of task.
type Pair = (String, String);

/// The most pairs that are remembered. Beyond it all are forgotten, and counted again when needed.
const MAX_PAIRS: usize = 16_384;

/// The bounds of one replica.
#[derive(Debug, Default)]
pub(super) struct OpenTasks {
    bounds: HashMap<Pair, Bound>,
    /// The number of leaves that the bounds account for.
    size: u64,
    /// How many of these leaves other replicas appended.
    foreign: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    /// The last count, plus the tasks that this replica opened since.
    open: u64,
    /// [`OpenTasks::foreign`] at the last count.
    foreign: u64,
}

/// The tasks of one pair that a batch may open.
#[derive(Clone, Copy)]
struct Wanted {
    /// The number of tasks that it may open.
    opens: u64,
    /// The smallest and the largest limit of a count. A limit is one more than a maximum.
    least: u32,
    most: u32,
}

/// The entries of a batch by pair.
fn by_pair(wanted: &[(String, String, u32)]) -> BTreeMap<(&str, &str), Wanted> {
    let mut pairs = BTreeMap::new();
    for (owner, task_type, limit) in wanted {
        let pair = pairs
            .entry((owner.as_str(), task_type.as_str()))
            .or_insert(Wanted {
                opens: 0,
                least: *limit,
                most: *limit,
            });
        pair.opens += 1;
        pair.least = pair.least.min(*limit);
        pair.most = pair.most.max(*limit);
    }
    pairs
}

impl OpenTasks {
    /// The pairs that have to be counted in a log of `size` leaves, each with the limit of its
    /// count. `wanted` has one item for each task that the batch may open.
    pub(super) fn to_count(
        &self,
        wanted: &[(String, String, u32)],
        size: u64,
    ) -> Vec<(String, String, u32)> {
        let unbounded = |(pair, wanted): &((&str, &str), Wanted)| {
            let bound = self.bound(*pair, size);
            bound.is_none_or(|bound| bound.saturating_add(wanted.opens) >= u64::from(wanted.least))
        };
        let pairs = by_pair(wanted).into_iter().filter(unbounded);
        pairs
            .map(|((owner, task_type), wanted)| {
                (owner.to_owned(), task_type.to_owned(), wanted.most)
            })
            .collect()
    }

    /// Adds the bounds of the pairs that were not counted.
    pub(super) fn fill_in(
        &self,
        wanted: &[(String, String, u32)],
        size: u64,
        counted: &mut HashMap<Pair, u32>,
    ) {
        for (owner, task_type) in by_pair(wanted).into_keys() {
            let Some(bound) = self.bound((owner, task_type), size) else {
                continue;
            };
            let pair = (owner.to_owned(), task_type.to_owned());
            let bound = u32::try_from(bound).unwrap_or(u32::MAX);
            counted.entry(pair).or_insert(bound);
        }
    }

    /// Moves on to a committed batch: `size` leaves were there before it, `counts` has the counts
    /// that were made under its lock, each with its limit, and it appended `leaves` leaves and
    /// `opened` these tasks.
    pub(super) fn take_over(
        &mut self,
        size: u64,
        counts: Vec<(Pair, u32, u32)>,
        leaves: usize,
        opened: &[Task],
    ) {
        self.foreign = self.foreign.saturating_add(size.saturating_sub(self.size));
        self.size = size.saturating_add(leaves as u64);
        if self.bounds.len().saturating_add(counts.len()) > MAX_PAIRS {
            self.bounds.clear();
        }
        for (pair, count, limit) in counts {
            // A count that stopped at its limit bounds nothing.
            if count >= limit {
                self.bounds.remove(&pair);
                continue;
            }
            let bound = Bound {
                open: u64::from(count),
                foreign: self.foreign,
            };
            self.bounds.insert(pair, bound);
        }
        for task in opened {
            if let Some(bound) = self.bounds.get_mut(&owner_and_type(task)) {
                bound.open = bound.open.saturating_add(1);
            }
        }
    }

    /// The bound of a pair in a log of `size` leaves. `None` if it was not counted yet.
    fn bound(&self, (owner, task_type): (&str, &str), size: u64) -> Option<u64> {
        let bound = self.bounds.get(&(owner.to_owned(), task_type.to_owned()))?;
        let since = self.foreign.saturating_sub(bound.foreign);
        let unread = size.saturating_sub(self.size);
        Some(bound.open.saturating_add(since).saturating_add(unread))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::task::TaskState;
    use crate::ids::TaskId;
    use uuid::Uuid;

    const OWNERS: [&str; 3] = ["dev:a", "dev:b", "dev:c"];

    fn task(owner: usize) -> Task {
        Task {
            id: TaskId::from(Uuid::nil()),
            task_type: "job".into(),
            attestor: "dev".into(),
            owner: OWNERS[owner].to_owned().try_into().unwrap(),
            owner_instance: None,
            parent: None,
            depth: 1,
            state: TaskState::Open,
            opened_at: Timestamp::EPOCH,
            deadline: Timestamp::MAX,
            heartbeat_seconds: None,
            heard_at: Timestamp::EPOCH,
            ended_at: None,
            handle_digest: [0; 32],
            handle_key: None,
            attestor_digest: [0; 32],
            sessions_left: 1,
            leaf_index: 0,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// This replica's batch: an owner and a maximum for each task, and whether the batch
        /// commits.
        Batch(Vec<(usize, u32)>, bool),
        /// Another replica opens tasks of these owners, or appends leaves that open none.
        Others(Vec<Option<usize>>),
        End(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let owner = 0..OWNERS.len();
        let tasks = prop::collection::vec((owner.clone(), 0..8_u32), 1..6);
        let leaves = prop::collection::vec(prop::option::of(owner.clone()), 0..4);
        prop_oneof![
            3 => (tasks, any::<bool>()).prop_map(|(tasks, commits)| Step::Batch(tasks, commits)),
            1 => leaves.prop_map(Step::Others),
            2 => owner.prop_map(Step::End),
        ]
    }

    /// The true number of open tasks by owner, and the size of the log.
    #[derive(Default)]
    struct World {
        open: [u32; OWNERS.len()],
        size: u64,
    }

    impl World {
        fn count(&self, pairs: &[(String, String, u32)]) -> Vec<(Pair, u32, u32)> {
            let counted = pairs.iter().map(|(owner, task_type, limit)| {
                let at = OWNERS.iter().position(|one| one == owner).unwrap();
                let pair = (owner.clone(), task_type.clone());
                (pair, self.open[at].min(*limit), *limit)
            });
            counted.collect()
        }
    }

    /// Settles a batch as the ledger does, and compares each decision with one by a count.
    fn settle(
        world: &mut World,
        bounds: &mut OpenTasks,
        known: u64,
        tasks: &[(usize, u32)],
        commits: bool,
    ) -> Result<(), TestCaseError> {
        let wanted: Vec<(String, String, u32)> = tasks
            .iter()
            .map(|(owner, most)| (OWNERS[*owner].to_owned(), "job".to_owned(), most + 1))
            .collect();
        let mut counts = world.count(&bounds.to_count(&wanted, known));
        let missing = bounds.to_count(&wanted, world.size);
        let missing: Vec<_> = missing
            .into_iter()
            .filter(|(owner, ..)| counts.iter().all(|((one, _), ..)| one != owner))
            .collect();
        counts.extend(world.count(&missing));
        let counted = counts.iter().map(|(pair, count, _)| (pair.clone(), *count));
        let mut view: HashMap<Pair, u32> = counted.collect();
        bounds.fill_in(&wanted, world.size, &mut view);
        let mut truth = world.open;
        let mut opened = Vec::new();
        for (owner, most) in tasks {
            let task = task(*owner);
            let open = view.entry(owner_and_type(&task)).or_insert(0);
            prop_assert_eq!(*open < *most, truth[*owner] < *most);
            if *open < *most {
                *open += 1;
                truth[*owner] += 1;
                opened.push(task);
            }
        }
        if commits {
            bounds.take_over(world.size, counts, tasks.len(), &opened);
            world.open = truth;
            world.size += tasks.len() as u64;
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn each_decision_is_the_same_as_with_a_count(
            steps in prop::collection::vec(any_step(), 1..60),
        ) {
            let mut world = World::default();
            let mut bounds = OpenTasks::default();
            // The size of the log as this replica last saw it.
            let mut known = 0;
            for step in steps {
                match step {
                    Step::Batch(tasks, commits) => {
                        settle(&mut world, &mut bounds, known, &tasks, commits)?;
                        known = world.size;
                    }
                    Step::Others(leaves) => {
                        for owner in &leaves {
                            if let Some(owner) = owner {
                                world.open[*owner] += 1;
                            }
                            world.size += 1;
                        }
                    }
                    Step::End(owner) => {
                        world.open[owner] = world.open[owner].saturating_sub(1);
                    }
                }
            }
        }
    }

    #[test]
    fn far_below_the_maximum_nothing_is_counted_twice() {
        let mut bounds = OpenTasks::default();
        let wanted = [("dev:a".to_owned(), "job".to_owned(), 1_001)];
        let mut counts = 0;
        for size in 0..2_000 {
            let counted = bounds.to_count(&wanted, size);
            counts += counted.len();
            // Tasks end as fast as others are opened.
            let counted = counted
                .into_iter()
                .map(|(owner, task_type, limit)| ((owner, task_type), 5, limit));
            bounds.take_over(size, counted.collect(), 1, &[task(0)]);
        }
        assert!(counts <= 4, "{counts} counts");
    }

    #[test]
    fn a_count_that_stopped_at_its_limit_is_no_bound() {
        let mut bounds = OpenTasks::default();
        let pair = ("dev:a".to_owned(), "job".to_owned());
        bounds.take_over(0, vec![(pair.clone(), 3, 3)], 0, &[]);
        let more = [(pair.0.clone(), pair.1.clone(), 101)];
        assert_eq!(bounds.to_count(&more, 0), more);
        bounds.take_over(0, vec![(pair, 3, 101)], 0, &[]);
        assert!(bounds.to_count(&more, 0).is_empty());
    }
}
