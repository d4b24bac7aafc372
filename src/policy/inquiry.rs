//! The evaluations that one request needs.
//!
//! [`CompiledGeneration::inquiry`] splits a request into single actions at single locations
//! ([`Single`]). Each can still cover many values: everything below a URL, everything a pattern
//! matches, every region. If the candidate policies have questions about these values
//! ([`super::asked`]), the broker answers them first. Parts of the request with the same registered
//! action and the same answers share one evaluation. So policies without locations are evaluated
//! once for a request with a hundred locations. [`Inquiry::answers`] then runs the evaluations.
//!
//! Doubt never permits. An evaluation for which no steps are left answers *deny*. A right that no
//! registered action covers gets no evaluations, which counts as denied. A name or value that the
//! schema does not have is [`Unmappable`]. The caller must check the budget and discard a result
//! for which it ran out: `super::decide` refuses then.
//!
//! Candidate policies and their questions come from `super::slice`, contexts from `super::mapping`.
//! This file answers single evaluations; `super::decide` combines them into the decision.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cedar_policy::{Entities, EntityUid, Request};

use super::asked::Extent;
use super::asked::text::AskedText;
use super::generation::CompiledGeneration;
use super::input::{CredentialInput, Input};
use super::mapping::{self, Scene, TaskFacts, Unmappable};
use super::schema;
use super::slice::{Answer, Slice};
use crate::clock::Timestamp;
use crate::domain::action::ActionName;
use crate::domain::catalog::Resource;
use crate::domain::grant::AuthorizationDetail;
use crate::domain::limits::EVALUATION_STEPS;
use crate::domain::location::Location;
use crate::domain::pattern::Budget;

/// One action at one location.
pub(super) struct Single<'a> {
    pub(super) action: &'a ActionName,
    pub(super) location: &'a Location,
    /// The registered action that policy decides about.
    pub(super) decided_as: &'a str,
    /// The evaluations that it needs, by number, each with one of the values that it decides about.
    /// Empty if no registered action decides about this action; the single is then denied.
    pub(super) asked: BTreeMap<usize, ExtentIndex>,
}

struct Evaluation {
    /// The candidate policies, as an index into the slices of the inquiry.
    slice: usize,
    request: Request,
}

/// An [`Extent`] as indices into the texts of the inquiry. `None` if the request does not have the
/// fact.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ExtentIndex {
    location: Option<usize>,
    action: Option<usize>,
    region: Option<usize>,
}

/// All evaluations of one request.
pub(super) struct Inquiry<'g, 'a> {
    pub(super) scene: Scene,
    /// The entities of the scene, with every action that an evaluation looks up.
    pub(super) entities: Entities,
    /// The evaluation of opening the task, if the request opens one.
    pub(super) opening: Option<usize>,
    /// Every action at every location.
    pub(super) singles: Vec<Single<'a>>,
    /// The candidate policies of each action.
    slices: Vec<(EntityUid, Slice<'g>)>,
    texts: Vec<AskedText>,
    evaluations: Vec<Evaluation>,
}

impl CompiledGeneration {
    /// The evaluations of `input`. Answering questions uses steps of `budget`; if it runs out,
    /// discard the result.
    pub(super) fn inquiry<'g, 'a>(
        &'g self,
        input: &'a Input,
        budget: &Budget,
    ) -> Result<Inquiry<'g, 'a>, Unmappable>
    where
        'g: 'a,
    {
        let credential = input.credential.as_ref();
        let resource = credential.map(|credential| credential.resource.as_str());
        let mut inquiry = Inquiry {
            scene: self.model.workload_scene(&input.principal, resource)?,
            entities: Entities::empty(),
            opening: None,
            singles: Vec::new(),
            slices: Vec::new(),
            texts: Vec::new(),
            evaluations: Vec::new(),
        };
        // A request without a credential always asks to open its task. Otherwise it would have no
        // evaluation that could deny it.
        if input.task.opens || credential.is_none() {
            inquiry.ask_to_open(self, &input.task, budget)?;
        }
        if let Some(credential) = credential {
            inquiry.ask_for(self, &input.task, credential, budget)?;
        }
        let slices = inquiry.slices.iter();
        let actions = slices.flat_map(|(_, slice)| slice.actions());
        inquiry.entities = self.model.entities(&inquiry.scene, actions)?;
        Ok(inquiry)
    }
}

impl<'g, 'a> Inquiry<'g, 'a>
where
    'g: 'a,
{
    fn ask_to_open(
        &mut self,
        generation: &'g CompiledGeneration,
        task: &TaskFacts,
        budget: &Budget,
    ) -> Result<(), Unmappable> {
        let model = &generation.model;
        let action = model.action(schema::OPEN_TASK);
        let task_type = model.task_type(&task.task_type);
        let slice = self.slice(generation, action.clone(), &task_type);
        let holding = self.holding(generation, slice, ExtentIndex::default(), budget);
        let context = mapping::task_context(task, &holding)?;
        let request = model.request(&self.scene, &action, &task_type, context)?;
        self.opening = Some(self.evaluations.len());
        self.evaluations.push(Evaluation { slice, request });
        Ok(())
    }

    fn ask_for(
        &mut self,
        generation: &'g CompiledGeneration,
        task: &TaskFacts,
        credential: &'a CredentialInput,
        budget: &Budget,
    ) -> Result<(), Unmappable> {
        let unknown = || Unmappable(format!("no resource `{}`", credential.resource));
        let uid = generation.model.resource(&credential.resource);
        let uid = uid.ok_or_else(unknown)?;
        let catalog = generation.catalog();
        let registered = catalog.resource(&credential.resource).ok_or_else(unknown)?;
        let ttl_seconds = generation.asked_ttl(credential, task);
        // The number of the evaluation for a slice and the questions that hold.
        let mut known: HashMap<(usize, Vec<u32>), usize> = HashMap::new();
        for detail in &credential.authorization_details {
            let by_location = self.extents(registered, detail);
            for action in detail.actions() {
                let text = registered
                    .kind
                    .detail_type()
                    .has_action_patterns()
                    .then(|| {
                        self.texts.push(AskedText::of_action(action));
                        self.texts.len() - 1
                    });
                let deciding = registered.decided_as(action, budget);
                if deciding.is_empty() {
                    // Policy cannot decide about this right. A single without evaluations is denied
                    // when the answers are combined.
                    self.singles
                        .extend(detail.locations().iter().map(|location| Single {
                            action,
                            location,
                            decided_as: action.as_str(),
                            asked: BTreeMap::new(),
                        }));
                }
                for decided_as in deciding {
                    let name = decided_as.as_str();
                    let slice = self.slice(generation, generation.model.action(name), &uid);
                    for (location, extents) in &by_location {
                        let mut numbers = BTreeMap::new();
                        for extent in extents {
                            let extent = ExtentIndex {
                                action: text,
                                ..*extent
                            };
                            let holding = self.holding(generation, slice, extent, budget);
                            let key = (slice, holding);
                            if let Some(number) = known.get(&key) {
                                numbers.entry(*number).or_insert(extent);
                                continue;
                            }
                            let context = mapping::credential_context(
                                task,
                                &key.1,
                                ttl_seconds,
                                credential.revocability,
                            )?;
                            let (uid_of_action, _) = &self.slices[slice];
                            let request = generation.model.request(
                                &self.scene,
                                uid_of_action,
                                &uid,
                                context,
                            )?;
                            numbers.insert(self.evaluations.len(), extent);
                            known.insert(key, self.evaluations.len());
                            self.evaluations.push(Evaluation { slice, request });
                        }
                        self.singles.push(Single {
                            action,
                            location,
                            decided_as: name,
                            asked: numbers,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// The values that each location of `detail` covers.
    fn extents(
        &mut self,
        registered: &Resource,
        detail: &'a AuthorizationDetail,
    ) -> BTreeMap<&'a Location, Vec<ExtentIndex>> {
        let mut add = |texts: Vec<AskedText>| {
            let from = self.texts.len();
            self.texts.extend(texts);
            from..self.texts.len()
        };
        let regions: Vec<Option<usize>> = match registered.kind.aws_role() {
            None => vec![None],
            Some(role) => {
                let texts = AskedText::of_region(detail.region(), &role.regions);
                add(texts).map(Some).collect()
            }
        };
        let locations = detail.locations().iter();
        locations
            .map(|location| {
                let texts = add(AskedText::of_location(location));
                let extents = texts.flat_map(|text| {
                    regions.iter().map(move |region| ExtentIndex {
                        location: Some(text),
                        action: None,
                        region: *region,
                    })
                });
                (location, extents.collect())
            })
            .collect()
    }

    /// The candidate policies for this action, as an index into `self.slices`. The action alone
    /// identifies them: all actions of one inquiry are about the same resource, except the opening
    /// of the task, whose action no resource can register.
    fn slice(
        &mut self,
        generation: &'g CompiledGeneration,
        action: EntityUid,
        resource: &EntityUid,
    ) -> usize {
        if let Some(known) = self.slices.iter().position(|(own, _)| *own == action) {
            return known;
        }
        let scene = &self.scene;
        let slice = generation
            .index
            .slice(&scene.principal, &scene.ancestors, &action, resource);
        self.slices.push((action, slice));
        self.slices.len() - 1
    }

    /// The numbers of the questions of the slice that hold for the values at `extent`.
    fn holding(
        &self,
        generation: &CompiledGeneration,
        slice: usize,
        extent: ExtentIndex,
        budget: &Budget,
    ) -> Vec<u32> {
        let (_, slice) = &self.slices[slice];
        generation
            .index
            .holding(slice, &self.extent(extent), budget)
    }

    /// The requested values that `index` names.
    pub(super) fn extent(&self, index: ExtentIndex) -> Extent<'_> {
        let text = |at: Option<usize>| at.and_then(|at| self.texts.get(at));
        Extent {
            location: text(index.location),
            action: text(index.action),
            region: text(index.region),
        }
    }

    /// Runs every evaluation with the policies that are enforced at `at`. If `budget` runs out, the
    /// rest is denied.
    pub(super) fn answers(&self, at: Timestamp, budget: &Budget) -> Vec<Answer> {
        let answer = |own: &Evaluation| {
            if !budget.spend(EVALUATION_STEPS) {
                return Answer::Deny(BTreeSet::new());
            }
            let (_, slice) = &self.slices[own.slice];
            slice.evaluate(&own.request, &self.entities, at)
        };
        self.evaluations.iter().map(answer).collect()
    }

    /// Every request for a credential that is evaluated.
    pub(super) fn credential_requests(&self) -> impl Iterator<Item = &Request> {
        let all = self.evaluations.iter().enumerate();
        all.filter(|(number, _)| Some(*number) != self.opening)
            .map(|(_, own)| &own.request)
    }

    /// The request of one evaluation; `None` if no evaluation has this number.
    pub(super) fn request(&self, number: usize) -> Option<&Request> {
        self.evaluations.get(number).map(|own| &own.request)
    }
}
