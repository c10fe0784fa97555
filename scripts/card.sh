#!/usr/bin/env bash
# What a first card should run: is everything right there, and how fast is it? At most seven minutes.
#
#   bash scripts/card.sh                      everything, into card-results/
#   bash scripts/card.sh --part speed         one part; may be given several times
#   bash scripts/card.sh --tiny               without a card: the same code on the CPU, small, to check the script
#   bash scripts/card.sh --name h100          and the figures as benchmarks/results/cards/h100.json
#
# Parts, in order of importance, each with a time limit and a log of its own; one that fails stops no other:
#   environment   versions, the card, a copy's bandwidth and a product's rate
#   doctor        `fastddpm doctor`                               side by side with
#   tests         `pytest -m gpu`; both with TF32 off
#   speed         50 DDIM steps of the CIFAR-10 UNet, ours and others', line by line
#   dropins       diffusers' exploding pipelines, lucidrains, guided-diffusion: parity, and a step's time
#   policies      a chunk of actions, batch 1: p50 and p99, ours and the original
#   bandwidth     every kernel beside a copy of as many bytes
#   profile       the kernels of one step
# and where --part names them:
#   in_flight     requests that come at random: in flight, in static batches, one at a time
#   precisions    highest, tf32, bf16 and fp16: times, and how far the images are apart
#   large_pictures  by rows of tiles
#
# Other options: --out FOLDER, --seconds N for everything, --python PROGRAM. Nothing is fetched: a wheel that lies in
# .whl/ (diffusers' is needed for its rows in `speed`) is unpacked into the folder of results.
set -u
cd "$(dirname "$0")/.." || exit 2
PARTS="" OUT=card-results BUDGET=410 PYTHON=python3 NAME="" TINY="" PATIENCE=1
USUAL="environment doctor tests speed dropins policies bandwidth profile"
ALL="$USUAL in_flight precisions large_pictures"
wrong() { echo "card.sh: $1" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1 in
        --tiny) TINY=--tiny PATIENCE=4; shift; continue ;;
        --part|--out|--seconds|--python|--name) [ $# -gt 1 ] || wrong "$1: no value given, one accepted" ;;
        *) wrong "$1: given; --part, --out, --seconds, --python, --name and --tiny accepted" ;;
    esac
    case $1 in
        --part) case " $ALL " in *" $2 "*) PARTS="$PARTS $2" ;; *) wrong "--part: $2 given, one of $ALL accepted" ;; esac ;;
        --out) OUT=$2 ;;
        --seconds) case $2 in ''|*[!0-9]*) wrong "--seconds: $2 given, a whole number accepted" ;; *) BUDGET=$2 ;; esac ;;
        --python) PYTHON=$2 ;;
        --name) NAME=$2 ;;
    esac
    shift 2
done
ASKED=$PARTS
PARTS=${PARTS:-$USUAL}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
KIT=$PWD/scripts/card
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$PWD/kernels:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 DIFFUSERS_VERBOSITY=error
# The compiled engines take cuDNN's and cuBLAS's kernels alone, which compile in seconds instead of minutes.
export TORCHINDUCTOR_MAX_AUTOTUNE_CONV_BACKENDS=ATEN TORCHINDUCTOR_MAX_AUTOTUNE_GEMM_BACKENDS=ATEN

if ls .whl/*.whl >/dev/null 2>&1; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$OUT/wheels" .whl/*.whl >"$OUT/wheels.log" 2>&1 \
        || echo "wheels: not installed, see wheels.log"
    # Behind what is installed: a wheel only fills gaps.
    export PYTHONPATH="$PYTHONPATH:$OUT/wheels"
fi

# Without a card it is not a matter of minutes, and a busy machine is slow.
BUDGET=$((BUDGET * PATIENCE))
left() { echo $((BUDGET - SECONDS)); }
least() { [ "$1" -lt "$2" ] && echo "$1" || echo "$2"; }
wants() { case " $PARTS " in *" $1 "*) [ "$(left)" -gt 5 ] || { echo "$1: no time left"; false; } ;; *) false ;; esac; }
# name, most seconds, command...: its output goes to NAME.log, its end to parts.log and the terminal.
part() {
    local name=$1 most began=$SECONDS code
    most=$(least $(($2 * PATIENCE)) "$(left)")
    shift 2
    timeout --kill-after=5 "$most" "$@" >"$OUT/$name.log" 2>&1
    code=$?
    echo "$name: exit code $code$([ $code -eq 124 ] || [ $code -eq 137 ] && echo ' (its time was up)')," \
        "$((SECONDS - began)) s of at most $most" | tee -a "$OUT/parts.log"
}

: >"$OUT/parts.log"
"$PYTHON" "$KIT/results.py" begin "$OUT" $TINY || exit 1
SECONDS=0
wants environment && part environment 40 "$PYTHON" "$KIT/environment.py" "$OUT" $TINY
# They look for mismatches, not for times: side by side, and with few processes each that compile. What a test
# came to is said as it ends: pytest says it all at its end, to which a time limit may not let it come.
if wants doctor; then
    part doctor 140 env TORCHINDUCTOR_COMPILE_THREADS=4 \
        "$PYTHON" -m fastddpm doctor --json "$OUT/doctor.json" ${TINY:+--device cpu} &
fi
if wants tests; then
    # Only files with such tests: to collect the others takes longer than to run these. The doctor runs anyway.
    part tests 140 env TORCHINDUCTOR_COMPILE_THREADS=2 "$PYTHON" -m pytest -vv -m gpu --tb=short --durations=10 \
        $("$PYTHON" -c 'import torch, xdist; print("-n 6" if torch.cuda.is_available() else "")' 2>/dev/null) \
        --deselect tests/commands/test_doctor.py::test_a_healthy_card $(grep -l 'mark\.gpu' tests/*/test_*.py) &
fi
wait
for log in doctor tests; do
    [ -f "$OUT/$log.log" ] && grep -aE "^(FAILED|ERROR)|] (FAILED|ERROR) |passed|failed" "$OUT/$log.log" | tail -15
done
if wants speed; then
    limit=$(least 240 $(($(left) - 145)))
    [ "$limit" -ge 20 ] || limit=20
    part speed $((limit + 15)) "$PYTHON" "$KIT/speed.py" "$OUT" --seconds "$limit" $TINY
    cat "$OUT/speed.log"
fi
# name, seconds, and if --part names it: a part that ends by itself before its time is up, with what it measured.
timed() {
    local seconds=${ASKED:+$3}
    seconds=${seconds:-$2}
    wants "$1" || return 0
    part "$1" $((seconds + 15)) "$PYTHON" "$KIT/$1.py" "$OUT" --seconds "$seconds" $TINY
    cat "$OUT/$1.log"
}
timed dropins 30 60
timed policies 30 180
if wants bandwidth; then
    part bandwidth 45 "$PYTHON" "$KIT/bandwidth.py" "$OUT" $TINY
    cat "$OUT/bandwidth.log"
fi
wants profile && part profile 45 "$PYTHON" "$KIT/profile_step.py" "$OUT" $TINY
timed in_flight 60 60
timed precisions 90 90
timed large_pictures 60 60
"$PYTHON" "$KIT/results.py" end "$OUT" ${NAME:+--name "$NAME"}
echo "all: $SECONDS s"
