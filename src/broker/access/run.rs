//! Runs the handler of a call, and uses up the evidence that the handler verified.
//!
//! The rule: verified evidence is used up before the caller gets an answer, also if the handler
//! fails. A handler whose premises (generation and role bindings) have changed runs again, up to
//! `MAX_ATTEMPTS` times.
//!
//! Failures: changed premises after all attempts get `FailClosed`. If the broker itself failed, that
//! error takes precedence over a failure to use up the evidence. The services of `broker` call
//! `Call::run`; `super::call` holds the evidence, and `super::evidence` has the types that the
//! handler gets.

use super::call::Call;
use super::evidence::Unverified;
use crate::broker::error::BrokerError;
use crate::ledger::entry::Premises;

/// How often a call is handled at most. It is handled again if the generation or the role bindings
/// changed meanwhile.
const MAX_ATTEMPTS: u32 = 5;

impl Call<'_> {
    /// Runs the call's handler. Before the caller gets the result, it uses up all evidence that the
    /// handler verified and did not use up. A handler whose premises changed runs again.
    pub(in crate::broker) async fn run<'c, T, H>(
        &'c self,
        handler: impl Fn(Unverified<'c>) -> H,
    ) -> Result<T, BrokerError>
    where
        H: Future<Output = Result<T, BrokerError>>,
    {
        let mut attempts = 0;
        loop {
            let superseded = match self.attempt(handler(Unverified::of(self))).await {
                Err(superseded @ BrokerError::Superseded) => superseded,
                result => return self.end(result),
            };
            attempts += 1;
            if attempts == MAX_ATTEMPTS {
                return self.give_up(superseded).await;
            }
            if let Err(error) = self.renew().await {
                return self.give_up(error).await;
            }
        }
    }

    /// Runs the handler once and uses up the remaining evidence.
    async fn attempt<T>(
        &self,
        handler: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        let result = handler.await;
        if let Err(BrokerError::Superseded) = &result {
            return result;
        }
        match (result, self.consume().await) {
            (_, Err(superseded @ BrokerError::Superseded)) => Err(superseded),
            // A failure of the broker is reported even if the consumption failed too.
            (Err(error), _) if error.is_transient() => Err(error),
            (_, Err(error)) => Err(error),
            (result, Ok(())) => result,
        }
    }

    /// Loads the active generation and the role bindings again, as the new premises.
    async fn renew(&self) -> Result<(), BrokerError> {
        self.access.generations.follow().await?;
        self.set_premises(self.access.premises());
        Ok(())
    }

    /// Ends a call whose premises have changed. Its evidence is used up under any premises.
    async fn give_up<T>(&self, error: BrokerError) -> Result<T, BrokerError> {
        self.set_premises(Premises::default());
        let consumed = self.consume().await;
        self.end(consumed.and(Err(error)))
    }

    /// Ends the call and converts its error into the caller's. Dropping the call then does not try
    /// again to consume evidence that could not be consumed.
    fn end<T>(&self, result: Result<T, BrokerError>) -> Result<T, BrokerError> {
        self.mark_used_up();
        result.map_err(|error| match error {
            BrokerError::Replayed => self.replayed(),
            BrokerError::Superseded => BrokerError::ledger(error.to_string()),
            other => other,
        })
    }
}
