#!/bin/sh
# The paired differences that the pages give and no report has, from the tables beside them: mean [95%], p, neither corrected, seeds.
#   sh experiments/results/by_hand.sh      about two minutes; PYTHON=.venv/bin/python where it is not `python`
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python}

page() { printf '\n%s\n' "$1"; }

section() { printf '\n  %s\n' "$1"; }

say() { # say LABEL TABLE.csv.. --of ROW.. --less ROW.. [--metric NAME] [--setting NAME]
  printf '    %s: ' "$1"; shift
  for argument do
    shift
    case $argument in *.csv) argument=experiments/results/$argument ;; esac
    set -- "$@" "$argument"
  done
  "$PYTHON" experiments/small/difference.py "$@"
}

# Protocols, and the detector as it was.
tuned='cards, 34 %' frozen='cards, 34 %, frozen' first='anchors rounded, fresh norms not settled'

# Rows of the components.
neither='MoCo v2, two views' b=background a=alignment h=hierarchy
ba='background + alignment' bh='background + hierarchy' ah='alignment + hierarchy' all='background + alignment + hierarchy'


page methods.md

pooled() { # pooled [--seeds LIST]: seeds 0 to 4 and 5 to 9 together
  for metric in curve_area AP; do
    for pair in "CoDo less random" "InsLoc less random" "InsLoc less CoDo"; do
      of=${pair%% *} less=${pair##* }
      say "$pair, fine-tuned, $metric" methods/results.csv methods/repeated.csv --of "$of @ $tuned" --less "$less @ $tuned" --metric $metric "$@"
      say "$pair, frozen, $metric" repeated/results.csv methods/repeated.csv --of "$of @ $frozen" --less "$less @ $frozen" --metric $metric "$@"
    done
  done
}

section "All ten seeds"
pooled

section "All ten seeds, without seed 0"
pooled --seeds 1,2,3,4,5,6,7,8,9

section "CoDo's AR100, less random, seeds 5 to 9"
say "fine-tuned" methods/repeated.csv --of "CoDo @ $tuned" --less "random @ $tuned" --metric AR100
say "frozen" methods/repeated.csv --of "CoDo @ $frozen" --less "random @ $frozen" --metric AR100

section "Against CoDo, seeds 5 to 9 (the page has p by Holm)"
say "MoCo v2, fine-tuned" methods/repeated.csv --of "MoCo v2 @ $tuned" --less "CoDo @ $tuned"
say "MoCo v2, frozen" methods/repeated.csv --of "MoCo v2 @ $frozen" --less "CoDo @ $frozen"
say "InsLoc, fine-tuned" methods/repeated.csv --of "InsLoc @ $tuned" --less "CoDo @ $tuned"
say "InsLoc, frozen" methods/repeated.csv --of "InsLoc @ $frozen" --less "CoDo @ $frozen"
say "InsLoc, fine-tuned, AP" methods/repeated.csv --of "InsLoc @ $tuned" --less "CoDo @ $tuned" --metric AP
say "InsLoc, frozen, AP" methods/repeated.csv --of "InsLoc @ $frozen" --less "CoDo @ $frozen" --metric AP

section "Frozen less fine-tuned, seeds 5 to 9"
for row in CoDo InsLoc random; do
  say "$row, area" methods/repeated.csv --of "$row @ $frozen" --less "$row @ $tuned"
  say "$row, AP" methods/repeated.csv --of "$row @ $frozen" --less "$row @ $tuned" --metric AP
done

section "Against CoDo, seeds 0 to 4 (the page has p by Holm)"
say "MoCo v2, fine-tuned" methods/results.csv --of "MoCo v2 @ $tuned" --less "CoDo @ $tuned"
say "MoCo v2, frozen" methods/results.csv --of "MoCo v2 @ $frozen" --less "CoDo @ $frozen"
say "InsLoc, fine-tuned" methods/results.csv --of "InsLoc @ $tuned" --less "CoDo @ $tuned"
say "InsLoc, frozen" methods/results.csv --of "InsLoc @ $frozen" --less "CoDo @ $frozen"

section "Asked twice, the first time, less random"
for how in "$tuned" "$frozen"; do
  for row in "MoCo v2" InsLoc CoDo; do
    say "$row, $how" methods/before.csv --of "$row @ $how" --less "random @ $how" --setting "$first"
  done
done

section "Asked twice, the mean of both for each seed"
for row in CoDo InsLoc; do
  for how in "$tuned" "$frozen"; do
    say "$row less random, $how" methods/results.csv methods/before.csv --of "$row @ $how" --less "random @ $how" --setting "$first"
  done
done
say "MoCo v2 against CoDo, frozen" methods/results.csv methods/before.csv --of "MoCo v2 @ $frozen" --less "CoDo @ $frozen" --setting "$first"

section "Frozen less fine-tuned, CoDo, seeds 0 to 4"
say "area" methods/results.csv --of "CoDo @ $frozen" --less "CoDo @ $tuned"
say "AP at the end" methods/results.csv --of "CoDo @ $frozen" --less "CoDo @ $tuned" --metric AP

section "Seeds 1 to 4 alone, CoDo less random"
say "fine-tuned" methods/results.csv --of "CoDo @ $tuned" --less "random @ $tuned" --seeds 1,2,3,4
say "frozen" methods/results.csv --of "CoDo @ $frozen" --less "random @ $frozen" --seeds 1,2,3,4

section "CoDo ahead of MoCo v2 with the backbone frozen"
say "AP" methods/results.csv --of "CoDo @ $frozen" --less "MoCo v2 @ $frozen" --metric AP

section "Three detectors of each pretraining: AP at the end"
say "pretraining, CoDo less random" repeated/results.csv --of CoDo --less random --metric AP
say "pasted backgrounds" repeated/results.csv --of CoDo --less "no backgrounds" --metric AP
say "InsLoc less CoDo" repeated/results.csv --of InsLoc --less CoDo --metric AP

section "From CoDo to InsLoc: CoDo at InsLoc's learning rate, less at its own"
say "fine-tuned" methods/learning_rate.csv --of "CoDo, lr .06 @ $tuned" --less "CoDo @ $tuned"
say "frozen" methods/learning_rate.csv --of "CoDo, lr .06 @ $frozen" --less "CoDo @ $frozen"
say "fine-tuned, the first time" methods/learning_rate_before.csv --of "CoDo, lr .06 @ $tuned" --less "CoDo @ $tuned"
say "fine-tuned, the mean of both for each seed" methods/learning_rate.csv methods/learning_rate_before.csv --of "CoDo, lr .06 @ $tuned" --less "CoDo @ $tuned"

section "From CoDo to InsLoc: at InsLoc's learning rate, three other seeds, and all eight"
for metric in curve_area AP; do
  for pair in "CoDo, lr .06 less CoDo" "InsLoc less CoDo, lr .06" "InsLoc less CoDo"; do
    of="${pair% less *} @ $tuned" less="${pair#* less } @ $tuned"
    say "$pair, $metric, three" methods/learning_rate_repeated.csv --of "$of" --less "$less" --metric "$metric"
    say "$pair, $metric, eight" methods/learning_rate_repeated.csv methods/learning_rate.csv --of "$of" --less "$less" --metric "$metric"
  done
done


page fine_tuning.md

section "What is handed on: the box head"
for how in "$tuned" "$frozen"; do
  say "$how" methods/box_head.csv --of "backbone, FPN and box head @ $how" --less "without the box head @ $how"
done

section "What is handed on: the FPN"
for how in "$tuned" "$frozen"; do
  say "$how" methods/box_head.csv --of "without the box head @ $how" --less "backbone alone @ $how"
done

section "What is handed on: the backbone alone, less random"
for how in "$tuned" "$frozen"; do
  say "$how" methods/box_head.csv --of "backbone alone @ $how" --less "random @ $how"
done
say "frozen, AP" methods/box_head.csv --of "backbone alone @ $frozen" --less "random @ $frozen" --metric AP

section "What is handed on: MoCo v2 less CoDo's backbone alone"
for how in "$tuned" "$frozen"; do
  say "$how" methods/box_head.csv --of "MoCo v2 @ $how" --less "backbone alone @ $how"
done

section "A longer fine-tuning: CoDo less random"
say "AP after the short one, the same seeds" longer/36_epochs.csv --of "CoDo, 12 epochs @ $tuned" --less "random @ $tuned" --metric AP
say "AP" methods/long_fine_tuning.csv --of CoDo --less random --metric AP

section "96 epochs: CoDo less random"
say "AP at the end" methods/equal_time.csv --of CoDo --less random --metric AP
say "AP75 at the end" methods/equal_time.csv --of CoDo --less random --metric AP75


page background_source.md

section "Box head, another view among distractors"
say "downstream less the foregrounds'" background_source/results.csv --of downstream --less self --metric probe/box_head/view_hard_top1 --digits 3

section "Area, downstream less self"
say "the first time" background_source/before.csv --of downstream --less self
say "the mean of both for each seed" background_source/results.csv background_source/before.csv --of downstream --less self


page longer.md

section "Minutes: seeds 5 to 7"
for how in "$tuned" "$frozen"; do
  for metric in curve_area AP; do
    say "36 epochs less 12, $how, $metric" longer/36_epochs.csv --of "CoDo, 36 epochs @ $how" --less "CoDo, 12 epochs @ $how" --metric $metric
    say "36 epochs less random, $how, $metric" longer/36_epochs.csv --of "CoDo, 36 epochs @ $how" --less "random @ $how" --metric $metric
  done
done

section "Minutes: six seeds"
for how in "$tuned" "$frozen"; do
  say "12 epochs less 4, $how" longer/results.csv longer/36_epochs.csv --of "CoDo, 12 epochs @ $how" --less "CoDo, 4 epochs @ $how"
  say "4 epochs less random, $how" longer/results.csv longer/36_epochs.csv --of "CoDo, 4 epochs @ $how" --less "random @ $how"
done

section "Minutes: seeds 0 to 2"
say "CoDo, 12 epochs, less random, frozen (the page has p by Holm)" longer/results.csv --of "CoDo, 12 epochs @ $frozen" --less "random @ $frozen"

section "Foregrounds (the page has p by Holm)"
for row in "250 foregrounds" "1000 foregrounds"; do
  say "$row, less all" longer/foregrounds.csv --of "$row" --less "all 2519"
done
say "250 foregrounds, less random" longer/foregrounds.csv --of "250 foregrounds" --less random

section "One query view, eight seeds"
say "area" attempts/one_view.csv longer/views.csv --of "one query view | views=1" --less "CoDo | views=2"
say "AP" attempts/one_view.csv longer/views.csv --of "one query view | views=1" --less "CoDo | views=2" --metric AP


page attempts.md

section "AP50 of one query view, eight seeds"
say "less CoDo" attempts/one_view.csv longer/views.csv --of "one query view | views=1" --less "CoDo | views=2" --metric AP50

section "Negatives on the same background: view_hard_top1"
for probe in probe/box_head/view_hard_top1 probe/view_hard_top1; do
  say "$probe" attempts/same_background.csv --of "negatives on the same background" --less CoDo --metric $probe --digits 3
done

section "AP50 of one query view, five seeds"
say "less CoDo" attempts/one_view.csv --of "one query view" --less CoDo --metric AP50

section "Area of one query view, the seven seeds after the sieve's"
say "less CoDo" attempts/one_view.csv longer/views.csv --of "one query view | views=1" --less "CoDo | views=2" --seeds 1,2,3,4,5,6,7


page mechanism.md

section "C5's variance ratio"
say "CoDo less random" methods/results.csv --of "CoDo @ $frozen" --less "random @ $frozen" --metric probe/variance_ratio --digits 3

section "The box head's box_slope, CoDo less"
say "random" methods/results.csv --of "CoDo @ $frozen" --less "random @ $frozen" --metric probe/box_head/box_slope
say "InsLoc" methods/results.csv --of "CoDo @ $frozen" --less "InsLoc @ $frozen" --metric probe/box_head/box_slope


page shortcut.md

section "Accuracy against the queue, less queue's"
for row in "128 keys" "momentum .999" "keys that stand still" "eight BN groups" "lr .02"; do
  say "$row" shortcut/results.csv --of "$row" --less queue --metric pretrain/queue_accuracy
done
section "The box head's view_hard_top1, less that of in-batch negatives"
for row in queue "queue and batch"; do
  say "$row" shortcut/results.csv --of "$row" --less "in-batch negatives" --metric probe/box_head/view_hard_top1
done
say "keys that stand still" shortcut/results.csv --of "keys that stand still" --less "in-batch negatives" --metric probe/box_head/view_hard_top1
say "keys that stand still, less queue's" shortcut/results.csv --of "keys that stand still" --less queue --metric probe/box_head/view_hard_top1
say "momentum .999, less queue's" shortcut/results.csv --of "momentum .999" --less queue --metric probe/box_head/view_hard_top1


page components.md

section "Answer"
say "hierarchy beside alignment, the surest grid" components/repeated.csv --of "$ah" --of "$all" --less $a --less "$ba"
say "single detectors" components/results.csv --of "$ah" --of "$all" --less $a --less "$ba"
say "tuned, the first time" components/tuned_before.csv --of "$ah" --of "$all" --less $a --less "$ba"
say "tuned, the second" components/tuned.csv --of "$ah" --of "$all" --less $a --less "$ba"
say "hierarchy without alignment, the surest grid" components/repeated.csv --of $h --of "$bh" --less "$neither" --less $b
say "backgrounds without alignment, tuned, the first time" components/tuned_before.csv --of $b --of "$bh" --less "$neither" --less $h
say "the second" components/tuned.csv --of $b --of "$bh" --less "$neither" --less $h
say "backgrounds without alignment, single detectors" components/results.csv --of $b --of "$bh" --less "$neither" --less $h
say "the lower of the two best rows, all three, less the next, area" components/repeated.csv --of "$all" --less "$ba"
say "AP" components/repeated.csv --of "$all" --less $a --metric AP

section "Three detectors of each pretraining: CoDo less"
say "random weights, area" components/repeated.csv --of "$all" --less random
say "AP at the end" components/repeated.csv --of "$all" --less random --metric AP
say "alignment, area" components/repeated.csv --of "$all" --less "$bh"
say "AP at the end" components/repeated.csv --of "$all" --less "$bh" --metric AP
say "hierarchy, area" components/repeated.csv --of "$all" --less "$ba"
say "AP at the end" components/repeated.csv --of "$all" --less "$ba" --metric AP
say "backgrounds, area" components/repeated.csv --of "$all" --less "$ah"
say "AP at the end" components/repeated.csv --of "$all" --less "$ah" --metric AP

section "Three detectors of each pretraining: as a ladder"
say "MoCo v2 less random weights" components/repeated.csv --of "$neither" --less random
say "with alignment" components/repeated.csv --of $a --less "$neither"
say "with backgrounds too" components/repeated.csv --of "$ba" --less $a
say "with the hierarchy too" components/repeated.csv --of "$all" --less "$ba"

section "Three detectors of each pretraining: halves of the grid"
say "backgrounds without alignment, area" components/repeated.csv --of $b --of "$bh" --less "$neither" --less $h
say "AP" components/repeated.csv --of $b --of "$bh" --less "$neither" --less $h --metric AP
say "MoCo v2 with backgrounds, less random weights" components/repeated.csv --of $b --less random
say "with the hierarchy too" components/repeated.csv --of "$bh" --less random
say "backgrounds with alignment" components/repeated.csv --of "$ba" --of "$all" --less $a --less "$ah"
say "alignment with the hierarchy" components/repeated.csv --of "$ah" --of "$all" --less $h --less "$bh"
say "without it" components/repeated.csv --of $a --of "$ba" --less "$neither" --less $b

section "Beside alignment, both large grids together"
say "hierarchy, area" components/repeated.csv components/results.csv --of "$ah" --of "$all" --less $a --less "$ba"
say "AP at the end" components/repeated.csv components/results.csv --of "$ah" --of "$all" --less $a --less "$ba" --metric AP
say "background, area" components/repeated.csv components/results.csv --of "$ba" --of "$all" --less $a --less "$ah"
say "AP at the end" components/repeated.csv components/results.csv --of "$ba" --of "$all" --less $a --less "$ah" --metric AP

section "The eight rows, single detectors: CoDo less one component each (the page has the other sign)"
say "alignment" components/results.csv --of "$all" --less "$bh"
say "hierarchy" components/results.csv --of "$all" --less "$ba"
say "backgrounds" components/results.csv --of "$all" --less "$ah"

section "The learning rate: background at .17 less MoCo v2 at .5"
say "three seeds" components/backgrounds_unaligned.csv --of "background, lr .17" --less "$neither, lr .5"
say "four" components/backgrounds_unaligned.csv components/tuned_before.csv --of "background, lr .17 | $b" --less "$neither, lr .5 | $neither"

section "Each row with its own learning rate: the mean of both times for each seed"
say "alignment" components/tuned.csv components/tuned_before.csv --of $a --of "$ba" --of "$ah" --of "$all" --less "$neither" --less $b --less $h --less "$bh"
say "with backgrounds" components/tuned.csv components/tuned_before.csv --of "$ba" --of "$all" --less $b --less "$bh"
say "without" components/tuned.csv components/tuned_before.csv --of $a --of "$ah" --less "$neither" --less $h
say "background" components/tuned.csv components/tuned_before.csv --of $b --of "$ba" --of "$bh" --of "$all" --less "$neither" --less $a --less $h --less "$ah"
say "hierarchy" components/tuned.csv components/tuned_before.csv --of $h --of "$ah" --of "$bh" --of "$all" --less "$neither" --less $a --less $b --less "$ba"

section "Each row with its own learning rate: backgrounds alone, less MoCo v2"
say "the first time" components/tuned_before.csv --of $b --less "$neither"

section "With and without backgrounds: CoDo less backgrounds"
say "ten seeds, area" repeated/results.csv components/repeated.csv --of "CoDo | $all" --less "no backgrounds | $ah"
say "AP" repeated/results.csv components/repeated.csv --of "CoDo | $all" --less "no backgrounds | $ah" --metric AP
say "tuned, the first time" components/tuned_before.csv --of "$all" --less "$ah"
say "the second" components/tuned.csv --of "$all" --less "$ah"

page label_fractions.md

section "Answer: CoDo less random in AP"
for labels in 10 34 100; do
  say "$labels % of labels" label_fractions/results.csv --of "CoDo @ $labels % of labels" --less "random @ $labels % of labels" --metric AP
done
say "CoDo with 10 % less random with 100 %" label_fractions/results.csv --of "CoDo @ 10 % of labels" --less "random @ 100 % of labels" --metric AP

section "Asked twice: area, the first time, and the mean of both for each seed"
for labels in 10 34 100; do
  say "$labels %, the first time" label_fractions/before.csv --of "CoDo @ $labels % of labels" --less "random @ $labels % of labels"
  say "$labels %, both" label_fractions/results.csv label_fractions/before.csv --of "CoDo @ $labels % of labels" --less "random @ $labels % of labels"
done

section "What it says besides: 100 % of labels less 10 %, area"
for row in CoDo random; do
  say "$row" label_fractions/results.csv --of "$row @ 100 % of labels" --less "$row @ 10 % of labels"
done

page blood.md

section "Fine-tuned: less random weights, AP at the end"
for row in "MoCo v2" InsLoc CoDo; do
  say "$row" blood/results.csv --of "$row" --less random --metric AP
done

section "Fine-tuned: MoCo v2"
say "less CoDo" blood/results.csv --of "MoCo v2" --less CoDo
say "less CoDo, before" blood/before.csv --of "MoCo v2" --less CoDo
say "less random, the mean of both for each seed" blood/results.csv blood/before.csv --of "MoCo v2" --less random

section "Asked before: frozen, CoDo, backbone alone, less random"
say "AP at the end" blood_frozen/before.csv --of "CoDo, backbone alone" --less random --metric AP

section "The components: backgrounds"
cells=blood_frozen/components.csv
say "AP" $cells --of $b --of "$ba" --of "$bh" --of "$all" --less "$neither" --less $a --less $h --less "$ah" --metric AP
say "without alignment, area" $cells --of $b --of "$bh" --less "$neither" --less $h
say "without alignment, AP" $cells --of $b --of "$bh" --less "$neither" --less $h --metric AP
say "beside the other two" $cells --of "$all" --less "$ah"

section "The components: less random weights"
say "all three, area" $cells --of "$all" --less random
for row in "$neither" $h "$ah"; do
  say "$row, AP" $cells --of "$row" --less random --metric AP
done
say "all eight rows, area" $cells --of "$neither" --of $b --of $a --of $h --of "$ba" --of "$bh" --of "$ah" --of "$all" --less random

section "The components: the hierarchy beside alignment"
say "area" $cells --of "$ah" --of "$all" --less $a --less "$ba"

section "The components: as a ladder"
say "MoCo v2 less random weights" $cells --of "$neither" --less random
say "with alignment" $cells --of $a --less "$neither"
say "with backgrounds too" $cells --of "$ba" --less $a
say "with the hierarchy too" $cells --of "$all" --less "$ba"
