//! Clauses of the rules that single steps show, each broken on purpose: the test of its line has to fail.

use std::panic::catch_unwind;

use keystore_core::mutant::{Mutant, switch};

use crate::{
    background, deciding, doubting, epochs, leaving, membership, moving, overtaken, recovered, reissued,
    salvaging, succession, surviving, unreadable,
};

const LINES: &[(Mutant, fn())] = &[
    (
        Mutant::NewcomersHeal,
        doubting::a_key_in_doubt_is_healed_by_the_new_ring_once_that_has_taken_over_what_the_old_one_held,
    ),
    (Mutant::HealsOverhearTheNews, overtaken::a_key_does_not_heal_by_the_answer_that_says_who_was_a_copy),
    (
        Mutant::OvertakenSourcesCount,
        overtaken::what_was_merged_of_a_source_that_others_have_met_since_counts_no_longer,
    ),
    (
        Mutant::DoubtfulPartitionsCount,
        unreadable::what_cannot_be_cleared_holds_up_no_layout_and_counts_for_nothing_until_it_is,
    ),
    (Mutant::MergesOutliveADoubt, doubting::a_partition_that_comes_into_doubt_is_merged_anew),
    (
        Mutant::DoubtsAreMergedAtOnce,
        doubting::nobody_is_asked_for_what_is_in_doubt_before_that_is_noted_whatever_layout_comes,
    ),
    (
        Mutant::AnybodyWritesInDoubt,
        unreadable::what_others_write_under_the_number_of_a_pass_is_refused_in_doubt,
    ),
    (Mutant::TheDepartedAreTaken, membership::whoever_was_given_up_or_has_departed_is_turned_away),
    (Mutant::TheLostGoOn, membership::whoever_learns_that_it_was_given_up_goes_on_no_more),
    (Mutant::TheDepartedGoOn, membership::whoever_learns_that_it_is_no_member_goes_on_no_more),
    (Mutant::TheUnawareWait, membership::whoever_has_departed_unaware_hears_it_when_it_is_turned_away),
    (Mutant::OtherClustersCount, membership::other_clusters_do_not_count),
    (Mutant::LeaversAreNotNoted, succession::a_layout_that_cannot_follow_is_refused),
    (Mutant::TheDepartedAreForgotten, succession::a_layout_that_cannot_follow_is_refused),
    (Mutant::AnySinceIsLegal, succession::a_layout_that_cannot_follow_is_refused),
    (Mutant::ClearedIsNotSynced, epochs::what_is_cleared_stays_empty_until_the_layout_is_in_force),
    (Mutant::VotesPromiseNothing, deciding::whoever_votes_under_a_ballot_has_promised_it),
    (Mutant::AcceptorsDoNotJudge, deciding::an_acceptor_judges_what_it_votes_for),
    (Mutant::TheBehindVote, deciding::only_a_voter_that_holds_the_layout_before_votes),
    (Mutant::StrangersVote, deciding::only_a_voter_that_holds_the_layout_before_votes),
    (Mutant::StrangersVotesCount, deciding::only_the_voters_count),
    (Mutant::FewVotersAreLegal, succession::a_layout_that_cannot_follow_is_refused),
    (Mutant::TheAwayVoteOn, succession::whoever_is_away_votes_no_longer),
    (Mutant::DecidedIsNotTold, deciding::only_a_voter_that_holds_the_layout_before_votes),
    (Mutant::AnyEpochIsExpected, deciding::a_proposal_is_for_the_layout_that_it_expects),
    (Mutant::RingsFollowAtOnce, succession::a_layout_that_cannot_follow_is_refused),
    (Mutant::FactorsChangeAlone, succession::a_layout_that_cannot_follow_is_refused),
    (
        Mutant::ReachableMembersAreNotAwaited,
        deciding::a_change_of_rings_waits_for_each_member_that_can_be_reached,
    ),
    (Mutant::EarlierEpochsAreAwaited, deciding::a_change_of_rings_waits_for_the_very_layout_in_force),
    (
        Mutant::EarlierFencesCount,
        succession::the_new_ring_waits_for_fences_of_the_old_and_for_merges_of_its_own,
    ),
    (
        Mutant::FencesOfTheLostCount,
        succession::the_new_ring_waits_for_fences_of_the_old_and_for_merges_of_its_own,
    ),
    (
        Mutant::FencesOfTheNewRingCount,
        succession::the_new_ring_waits_for_fences_of_the_old_and_for_merges_of_its_own,
    ),
    (Mutant::OneFenceFewer, succession::the_new_ring_waits_for_fences_of_the_old_and_for_merges_of_its_own),
    (Mutant::TakenUpInMidWrite, epochs::nothing_is_cleared_while_writes_of_it_are_under_way),
    (Mutant::LaterEpochsAreNotAwaited, epochs::what_is_said_under_a_later_layout_waits_for_that),
    (Mutant::ReadsOutliveTheirEpoch, reissued::what_a_replica_reads_for_others_ends_with_the_layout),
    (Mutant::ReissuedAreStampedAnew, reissued::answers_of_different_epochs_never_add_up),
    (Mutant::ReissuedLastLonger, reissued::answers_of_different_epochs_never_add_up),
    (
        Mutant::HintsOutliveTheirEpoch,
        reissued::what_was_handed_over_under_an_earlier_layout_is_handed_over_once_more,
    ),
    (
        Mutant::TransfersOutliveTheirEpoch,
        moving::a_page_that_was_asked_for_under_an_earlier_layout_is_asked_for_once_more,
    ),
    (Mutant::TheLastCopyGoes, leaving::what_has_left_is_kept_while_too_few_replicas_are_in_no_doubt),
    (Mutant::LeaversAreNotAwaited, deciding::no_data_moves_while_somebody_drops_what_it_has_left),
    (Mutant::TheMisheardAreNotTold, deciding::whoever_is_waited_for_says_how_far_it_is),
    (Mutant::GreetingsAreNotTold, leaving::whoever_hears_of_it_as_its_link_comes_up_hears_that_it_is_over),
    (Mutant::TheDoubtfulAreWhole, doubting::a_replica_in_doubt_is_not_whole),
    (Mutant::WhatIsSkippedCountsAsRead, unreadable::what_was_skipped_is_read_before_a_partition_is_whole),
    (Mutant::EarlierGenerationsAreEvidence, moving::what_a_member_said_before_it_started_anew_is_no_evidence),
    (
        Mutant::EvidenceOutlivesItsPhase,
        succession::the_new_ring_waits_for_fences_of_the_old_and_for_merges_of_its_own,
    ),
    (
        Mutant::LostQuorumsAreEnough,
        succession::the_new_ring_waits_for_fences_of_the_old_and_for_merges_of_its_own,
    ),
    (Mutant::TheLostAreSources, moving::whoever_was_given_up_is_not_asked),
    (Mutant::TheLostAreGivenData, succession::nobody_who_is_lost_is_given_data),
    (Mutant::HoldersAreDismissed, succession::a_layout_that_cannot_follow_is_refused),
    (Mutant::KeepersAreDismissed, deciding::whoever_answers_and_may_have_the_last_copy_stays_a_member),
    (Mutant::TheDoubtfulIsHeld, doubting::what_is_in_doubt_is_not_said_to_be_held),
    (
        Mutant::AnotherSourcesCursorCounts,
        moving::a_pass_that_goes_on_with_another_source_begins_at_the_beginning,
    ),
    (Mutant::FailedPagesCount, moving::a_page_counts_once_all_of_it_is_on_disk),
    (
        Mutant::TheFullAskForMore,
        moving::a_node_whose_disk_is_full_asks_for_nothing_that_it_gains_until_there_is_room,
    ),
    (Mutant::CursorsAreNotSaved, moving::a_pass_goes_on_after_a_start_behind_what_it_had_stored),
    (
        Mutant::InForceInMidCommit,
        surviving::what_is_being_committed_when_a_recovery_is_accepted_ends_before_it_is_in_force,
    ),
    (Mutant::OldSourcesAreEnough, recovered::what_is_salvaged_once_more_is_merged_of_all_its_replicas),
    (Mutant::TheCountedDropWhatIsDamaged, salvaging::what_has_counted_before_a_start_is_healed_after_it),
    (
        Mutant::TheCountedAreSalvagedAgain,
        salvaging::what_has_counted_and_is_in_doubt_as_a_whole_is_asked_of_the_ring,
    ),
    (Mutant::CountsBeforeThatIsSaved, salvaging::a_salvaged_partition_counts_once_that_is_on_disk),
    (
        Mutant::CountsWithWhatIsDamaged,
        salvaging::a_salvaged_partition_does_not_count_while_something_of_it_is_damaged,
    ),
    (
        Mutant::CountedOutlivesARecovery,
        salvaging::what_has_counted_before_another_recovery_does_not_count_after_it,
    ),
    (Mutant::CountedIsMergedAgain, salvaging::what_has_counted_counts_when_the_move_turns_back),
    (Mutant::SourcesAreGivenUp, succession::whoever_may_alone_have_what_is_salvaged_stays_a_member),
    (Mutant::SourcesAreDismissed, succession::whoever_may_alone_have_what_is_salvaged_stays_a_member),
    (Mutant::AttemptsOfThePastCount, surviving::an_attempt_that_misses_what_was_in_force_is_refused),
    (
        Mutant::AcceptedBeforeItIsSaved,
        surviving::a_recovery_is_accepted_durably_and_only_above_what_was_accepted,
    ),
    (Mutant::SourcesAreUnbounded, moving::a_source_gives_no_more_than_its_budget_however_many_ask),
    (
        Mutant::TransfersHaveTheirOwnBudget,
        background::all_work_of_the_background_keeps_to_its_budget_and_yields_to_clients,
    ),
    (
        Mutant::HintsHaveTheirOwnBudget,
        background::what_is_kept_for_others_is_handed_over_within_the_budget_of_the_background,
    ),
    (
        Mutant::BackgroundDoesNotYield,
        background::all_work_of_the_background_keeps_to_its_budget_and_yields_to_clients,
    ),
];

#[test]
fn each_broken_clause_is_noticed_by_its_test() {
    for (mutant, test) in LINES {
        switch(Some(*mutant));
        let passed = catch_unwind(test);
        switch(None);
        assert!(passed.is_err(), "rule {}: nobody notices {mutant:?}", mutant.rule());
        assert!(catch_unwind(test).is_ok(), "the test for {mutant:?} fails by itself");
    }
}

#[test]
fn each_mutant_that_a_case_shows_has_one() {
    let listed: Vec<_> = LINES.iter().map(|(mutant, _)| *mutant).collect();
    let ours = Mutant::ALL.iter().copied().filter(|mutant| mutant.is_shown_by_a_case());
    assert_eq!(listed, ours.collect::<Vec<_>>());
}
