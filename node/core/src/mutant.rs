//! The rules of the store, each broken on purpose: what shows that the tests would notice.
//!
//! A mutant is switched on for one thread, by a test. Without the feature `mutants`, which nothing but this crate's
//! own tests asks for, there is no switch: `is_on` is false at compile time, and what it guards is not built.

macro_rules! mutants {
    ($($rule:literal $($(#[$meta:meta])* $name:ident $(by $case:ident)?),* ;)*) => {
        /// A rule that is broken, and how.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant {
            $($($(#[$meta])* $name,)*)*
        }

        impl Mutant {
            pub const ALL: &'static [Self] = &[$($(Self::$name,)*)*];

            /// The number of the rule that it breaks.
            pub fn rule(self) -> u8 {
                match self {
                    $($(Self::$name => $rule,)*)*
                }
            }

            /// True if single steps show it (`by case`), and not whole clusters in the simulation.
            pub fn is_shown_by_a_case(self) -> bool {
                match self {
                    $($(Self::$name => mutants!(@by $($case)?),)*)*
                }
            }
        }
    };
    (@by) => { false };
    (@by case) => { true };
}

mutants! {
    1 /// A replica that holds a higher stamp counts towards the quorum.
      SupersededCounts,
      /// A write is acknowledged with one replica less than a quorum.
      OneAckFewer,
      /// What a replica said of an earlier stamp counts for a later one.
      EarlierAttemptsCount,
      /// A replica says that it holds what a higher stamp has superseded.
      SupersededIsCalledHeld,
      /// A replica that has started thinks that it stores nothing.
      NothingIsThereAtAStart,
      /// Stamps of one moment by several actors are taken for an order.
      OneMomentIsAnOrder,
      /// A replica does not remember the stamps of what it stores, or of what has healed a key.
      StoredIsNotRemembered,
      HealedIsNotRemembered;
    2 /// A read answers what fewer than a quorum hold.
      NoWriteBack,
      /// The write-back is sent, and the answer with it.
      WriteBackIsNotAwaited,
      FailedWriteBackIsAnswered,
      /// The first whole record is answered, whatever versions others have.
      DigestsAreIgnored,
      /// A quorum read asks one replica.
      OneReplicaIsRead;
    3 /// A replica shows a record that is still being committed.
      ReadsSeeWhatIsBeingCommitted,
      /// A replica says that it holds a write when it hands it to the log.
      HeldBeforeItIsSynced,
      /// A replica says what supersedes a write before that is synced.
      SupersededBeforeItIsSynced;
    4 /// A write whose replica was lost on the way is called failed.
      LostIsCalledFailed,
      /// A write that ran out of time is called failed.
      TimeoutIsCalledFailed,
      LateWritesAreTaken,
      /// A coordinator ends no request at its deadline.
      DeadlinesAreForgotten,
      /// The log has refused a sibling that is part of what is being committed next: it is answered at once.
      RefusedSiblingsAreAnsweredAtOnce,
      /// It is answered as the last commit under way is, whatever became of those before.
      RefusedSiblingsWaitForTheLast,
      /// A refused value is answered though it is being committed once more.
      RefusedValuesAreAnsweredAtOnce;
    5 /// A write that is among the siblings already is added once more.
      OperationsAreForgotten,
      /// Siblings of one operation are shown as several.
      OneOperationIsSeveralValues;
    6 CeilingIsIgnored,
      /// A ceiling counts as soon as it is on its way to the disk.
      CeilingCountsBeforeItIsSaved,
      /// A started node issues stamps below those of its life before.
      StartsBelowTheCeiling,
      /// A record that a replica has accepted is refused for its stamp.
      RepairsAreRefusedForTheirStamp,
      /// A replica's clock stays below what it accepts.
      AcceptedIsNotObserved,
      /// A started node issues stamps before the clock has come up to the ceiling.
      StartsDoNotWaitForTheClock;
    7 /// A replica that could not be asked, and gets a hint, counts towards the quorum.
      HintsCount,
      HintsAreUnbounded,
      /// A hint ends when its record is sent.
      HintsEndUnheard,
      /// A coordinator asks nobody to keep a hint.
      MissedIsNotHinted,
      /// A hint that was asked for again while its record was on its way ends when that is taken.
      RenewedHintsEnd,
      /// A hint that its target has refused once is never handed over again.
      RefusedHintsRestForEver;
    8 /// All replicas give dots as one actor.
      OneActorMintsForAll,
      /// A write replaces siblings that its client has not seen.
      WritesReplaceTheUnseen,
      /// A replica commits siblings that it is sent without those that it has.
      SiblingsAreNotMerged,
      /// What one side has seen go is merged in again.
      ReplacedValuesReturn,
      SiblingsAreUncapped,
      /// A delete without context removes what one replica shows.
      BlindDeletesSeeOneReplica,
      /// A replica that may have lost dots gives them as the same actor as before.
      DotsAreGivenAgainAfterADoubt;
    9 /// An expired value is missing without a mark of it.
      NoExpiredMark,
      /// The mark that a value has expired loses to the value.
      ExpiredMarkLoses,
      /// What expires while it is written back is missing without a mark.
      ExpiryByALaterClock;
    10 /// A page ends at the largest last key among the answers that were cut.
      PagesEndAtTheLargestKey,
      ScansAreNotWrittenBack;
    11 /// A commit that is only written is reported as synced.
      WrittenIsCalledSynced,
      /// A write waits for a commit that is to be less durable than itself.
      JoinsLessDurableCommits;
    14 /// A damaged record is a missing one.
      DamagedIsMissing,
      /// What the engine has not taken, because of damage, counts as held.
      DamagedCommitsAreHeld,
      /// One replica fewer than needed heals a key in doubt.
      OneFewerHeals,
      /// While data moves, replicas of the new ring heal it that have not taken over what the old one held.
      NewcomersHeal by case,
      /// A key in doubt is healed from replicas that have not noted a new generation.
      HealsWithoutANewGeneration,
      /// An attempt to heal a key that has come to nothing is the last one.
      HealsAreTriedOnce,
      /// What a replica said before it was known as a later generation still counts.
      EarlierGenerationsCount,
      /// What the senders of answers have noted of others is not heard.
      NotedIsNotHeard,
      /// It is heard, and what those had said as an earlier generation still counts.
      NotedVoidsNothing,
      /// What heals is concluded from an answer before the news that comes with it are taken in.
      HealsOverhearTheNews by case,
      /// What was merged of a source counts, though others have met it as a later generation.
      OvertakenSourcesCount by case,
      /// A hello of a later generation voids nothing before that is on disk, and what others say of it is no news.
      HellosVoidNothingUntilSaved,
      /// What a replica has said to a read before it was known as a later generation still counts; and so on.
      ReadsCountEarlierGenerations,
      ScansCountEarlierGenerations,
      WriteBacksCountEarlierGenerations,
      SiblingsCountEarlierGenerations,
      HealsCountEarlierGenerations,
      /// A node speaks as a generation that is still being saved.
      RaisedBeforeItIsSaved,
      /// Answers speak of generations of others that are still being saved.
      NotedBeforeItIsSaved,
      /// Writes whose commits are under way when a key comes into doubt are answered.
      CommitsOutliveADoubt,
      /// Writes of keys in doubt are taken.
      WritesAreTakenInDoubt,
      ReadsSpeakOfKeysInDoubt,
      ScansSpeakOfKeysInDoubt,
      /// A partition that is in doubt as a whole counts.
      DoubtfulPartitionsCount by case,
      /// What was merged of it before it came into doubt ends that.
      MergesOutliveADoubt by case,
      /// Others are asked for it before they have noted since when it is in doubt, once another layout is in force.
      DoubtsAreMergedAtOnce by case,
      /// What bears the number of a pass is written, whoever sends it.
      AnybodyWritesInDoubt by case;
    15 SecondNonceIsAccepted,
      /// A later generation is accepted whatever it comes after.
      LineageIsNotCompared,
      EarlierGenerationIsAccepted,
      /// A refusal of a generation that a node has had before says that its disk is not the one its peers know.
      EarlierRefusalsSetAside,
      /// A link is taken into use before the identity behind it is on disk.
      IdentityIsNotSavedFirst,
      /// A link is taken into use once that is on disk, whatever was heard meanwhile.
      OvertakenIdentitiesAreAccepted,
      /// A link that has closed meanwhile is taken into use.
      ClosedLinksAreAccepted,
      /// Links and frames that are meant for another node are accepted.
      StrayFramesCount,
      /// A node that joins hears nothing of the members' identities.
      JoinersHearOfNobody,
      /// What a node held of a partition before it became a replica of it stays.
      RecordsOutliveMembership,
      /// Links of members that were given up, or are none any more, are taken.
      TheDepartedAreTaken by case,
      /// A member that was given up goes on under the layout that says so.
      TheLostGoOn by case,
      /// One that is none any more does.
      TheDepartedGoOn by case,
      /// A node that was dismissed before it heard that it was a member waits for ever.
      TheUnawareWait by case,
      /// Frames and layouts of other clusters are taken.
      OtherClustersCount by case,
      /// Who is a member no more is not noted, and so may join again with its old disk.
      LeaversAreNotNoted by case,
      /// Who has departed is noted no longer, and may join again.
      TheDepartedAreForgotten by case,
      /// A replica that stays may have any epoch since which it has been one, and a new one an earlier one.
      AnySinceIsLegal by case,
      /// What a layout has dropped may come up again after it is acknowledged.
      ClearedIsNotSynced by case;
    18 /// A member serves before it knows that all others have accepted.
      ServesBeforeAllHaveAccepted,
      /// A member that has accepted a first layout accepts another one.
      SecondInitIsAccepted;
    19 /// An acceptor votes under a ballot below the one that it has promised.
      PromisesAreForgotten,
      /// A promise does not say what was voted for.
      PromisesHideVotes,
      /// A proposer proposes its own layout though another one was voted for.
      FoundVotesAreIgnored,
      /// Answers to earlier ballots count.
      AnyBallotCounts,
      /// A layout is decided with one vote less than a majority.
      OneVoteFewer,
      /// An acceptor that votes under a ballot has promised what it had before.
      VotesPromiseNothing by case,
      /// Promises and votes are given before they are on disk.
      VotesBeforeTheyAreSaved,
      /// An acceptor votes for whatever it is asked to.
      AcceptorsDoNotJudge by case,
      /// An acceptor that is behind votes as if it held the layout before.
      TheBehindVote by case,
      /// Whoever is asked votes.
      StrangersVote by case,
      /// Whatever anybody says counts as a vote.
      StrangersVotesCount by case,
      /// A layout may have fewer voters than its members allow.
      FewVotersAreLegal by case,
      /// Whoever is away votes on, though others could.
      TheAwayVoteOn by case,
      /// Who asks for votes on what was decided long ago does not hear of it.
      DecidedIsNotTold by case,
      /// A proposal may expect any epoch to be in force.
      AnyEpochIsExpected by case;
    20 /// Operations need their quorum in the old ring alone while data moves.
      OneRingIsEnough,
      /// They need it in the new one alone.
      TheNewRingIsEnough,
      /// A ring of more or fewer replicas stands alone at once.
      FactorsChangeAtOnce,
      /// One ring follows another without a phase in which both count.
      RingsFollowAtOnce by case,
      /// The number of replicas that is wanted changes, and the rings do not.
      FactorsChangeAlone by case;
    21 /// A change of rings waits for no fences.
      ChangesDoNotWaitForFences,
      /// A replica takes requests of earlier epochs.
      EarlierEpochsAreServed,
      /// A new layout is acknowledged before it is on disk.
      FencedBeforeItIsSaved,
      /// What replicas said under an earlier layout counts under the next.
      OperationsOutliveTheirEpoch,
      /// A change of rings does not wait for members that can be reached and have not acknowledged the layout in force.
      ReachableMembersAreNotAwaited by case,
      /// It waits for them to acknowledge an earlier layout of the same rings.
      EarlierEpochsAreAwaited by case,
      /// Acknowledging an earlier phase is enough.
      EarlierFencesCount by case,
      /// What members that were given up have acknowledged counts.
      FencesOfTheLostCount by case,
      /// Fences of the ring that is to stay count while data moves to it.
      FencesOfTheNewRingCount by case,
      /// One fence fewer than shares a replica with each quorum is enough.
      OneFenceFewer by case,
      /// A member takes up a layout while writes of the one before are under way.
      TakenUpInMidWrite by case,
      /// What is said under a later layout is handled before that is in force here.
      LaterEpochsAreNotAwaited by case,
      /// What is read for a request of before is answered.
      ReadsOutliveTheirEpoch by case,
      /// A write goes on under the next layout with another stamp than it had.
      ReissuedAreStampedAnew by case,
      /// Or with a later deadline.
      ReissuedLastLonger by case,
      /// What was said to a hint, or a page that was given, under an earlier layout counts under the next.
      HintsOutliveTheirEpoch by case,
      TransfersOutliveTheirEpoch by case;
    22 /// The new ring stands alone before its replicas have merged the old ones' records.
      MovesEndUnmerged,
      /// It does once a quorum of them has.
      AQuorumMerges,
      /// A replica takes itself for whole with one merged replica less than is needed.
      OneFewerIsMerged,
      /// What was merged in an earlier phase counts.
      MergesOutliveTheirPhase,
      /// A replica that was one of the old ring is taken for whole.
      TheKeptNeedNotMerge,
      /// What was deleted is not taken over.
      TombstonesStay,
      /// What a node holds and will no longer be a replica of goes before the new ring stands alone.
      LeftIsClearedWhileDataMoves,
      /// It goes though of its replicas too few are in no doubt.
      TheLastCopyGoes by case,
      /// Data moves while somebody drops what it left before, and may have to be given it again.
      LeaversAreNotAwaited by case,
      /// Who is sent a layout that it has does not say how far it is.
      TheMisheardAreNotTold by case,
      /// Whoever hears from a node as the link comes up does not hear what has changed by then.
      GreetingsAreNotTold by case,
      /// It goes while others may still ask for it under the layout before.
      LeftIsClearedUnheard,
      /// A replica in doubt calls its partition whole.
      TheDoubtfulAreWhole by case,
      /// It does once it has read what it holds behind the place at which a pass goes on.
      WhatIsSkippedCountsAsRead by case,
      /// What a member said as an earlier generation is evidence.
      EarlierGenerationsAreEvidence by case,
      /// What it said of another phase is.
      EvidenceOutlivesItsPhase by case,
      /// The new ring stands alone though no quorum of it is left.
      LostQuorumsAreEnough by case,
      /// Members that were given up are asked for what they hold.
      TheLostAreSources by case,
      /// Members that were given up are to hold data.
      TheLostAreGivenData by case,
      /// A member that holds data may be left out.
      HoldersAreDismissed by case,
      /// Or has something left that may be the last copy.
      KeepersAreDismissed by case,
      /// What is in doubt is said to be held, and so does not come.
      TheDoubtfulIsHeld by case,
      /// Where a pass was broken off at one source, it goes on at another.
      AnotherSourcesCursorCounts by case,
      /// A page counts as merged though records of it were not stored.
      FailedPagesCount by case;
    23 /// What the new owner holds is sent to it once more.
      WhatIsHeldIsNotSaid,
      /// Of a page in which something differs, all is sent.
      AllOfADifferentPageIsSent,
      /// A page is taken for the same whatever its digest is.
      DigestsAreNotCompared,
      /// The digest of a record does not tell its versions apart.
      VersionsAreNotCompared,
      /// A pass goes on behind what the source has compared.
      MoreIsComparedThanWasRead,
      /// What was not sent, since it is held, is not on disk before the pass goes on behind it.
      HeldIsNotSynced,
      /// A node without room asks for partitions that it gains all the same.
      TheFullAskForMore by case,
      /// How far a pass has come is forgotten with the process.
      CursorsAreNotSaved by case;
    24 /// A survivor accepts an attempt whose number is not above what it has accepted.
      LowerAttemptsAreAccepted,
      /// A survivor serves before it knows that all others have accepted.
      SurvivorsServeAtOnce,
      /// It serves while something of before is being committed, which is given to nobody then.
      InForceInMidCommit by case,
      /// Frames and hellos of any incarnation are taken.
      AnyIncarnationCounts,
      /// A partition with too few replicas to trust keeps its ring, and counts at once.
      ShortPartitionsStay,
      /// One of which nothing was lost gets a new ring as well.
      WholePartitionsAreSalvaged,
      /// While data moves, what is left takes the place of the old ring alone.
      TheNewRingKeepsTheLost,
      /// A replica of a salvaged partition counts before it has merged anything.
      SalvagedCountsAtOnce,
      /// It does once one of the others is merged.
      OneSourceIsEnough,
      /// What a survivor in doubt holds is not merged.
      TheDoubtedAreNoSources,
      /// Survivors wait for the lost to accept.
      TheLostAreWaitedFor,
      /// Rings of salvaged partitions, and what is merged for them, are of the lost as well.
      TheLostAreSalvaged,
      /// Whoever was called lost, and comes back, does not hear of it.
      TheLostHearNothing,
      /// Requests of before a recovery go on after it.
      RequestsOutliveARecovery,
      /// What is damaged of a salvaged partition waits to be healed.
      TheDamagedIsWaitedFor,
      /// And is given away as if it could be read.
      TheDamagedIsGivenAway,
      /// What has been salvaged before is merged of those alone that had something then.
      OldSourcesAreEnough by case,
      /// What is damaged of one that has counted here goes as well.
      TheCountedDropWhatIsDamaged by case,
      /// Or is asked of whoever had something left, as if nothing had been written since.
      TheCountedAreSalvagedAgain by case,
      /// It counts before that is on disk.
      CountsBeforeThatIsSaved by case,
      /// Or with a key that is damaged, and goes later.
      CountsWithWhatIsDamaged by case,
      /// What has counted in another incarnation counts in this one.
      CountedOutlivesARecovery by case,
      /// What has counted is merged once more when a move turns back.
      CountedIsMergedAgain by case,
      /// Whoever may alone have something of a salvaged partition is given up, without another recovery.
      SourcesAreGivenUp by case,
      /// Or is no member any more.
      SourcesAreDismissed by case,
      /// A survivor accepts an attempt that misses what has been in force since.
      AttemptsOfThePastCount by case,
      /// It says that it has accepted one before that is on disk.
      AcceptedBeforeItIsSaved by case;
    27 RequestsAreUnbounded,
      WritesAreUnbounded,
      /// A source gives away whatever it is asked for, at once.
      SourcesAreUnbounded by case,
      /// Who takes a partition over, and who keeps hints, has a budget of its own.
      TransfersHaveTheirOwnBudget by case,
      HintsHaveTheirOwnBudget by case,
      /// Work of the background goes on at its pace however much clients want.
      BackgroundDoesNotYield by case;
}

#[cfg(feature = "mutants")]
std::thread_local! {
    static ON: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Switches one mutant on, or all off, for everything that this thread does from now on.
#[cfg(feature = "mutants")]
pub fn switch(mutant: Option<Mutant>) {
    ON.set(mutant);
}

#[cfg(feature = "mutants")]
pub(crate) fn is_on(mutant: Mutant) -> bool {
    ON.get() == Some(mutant)
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn is_on(_: Mutant) -> bool {
    false
}
