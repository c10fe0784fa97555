"""The one table of tolerances for samplers and engines, and why each is what it is."""

# Two orders of the same float32 sums, over a chain of tens of steps in [-1, 1]; relative to the largest value
# where an unclipped chain of an untrained network leaves that range.
EAGER_VS_COMPILED = 1e-4
# The same ops in the same order on the same machine.
SAME_OPS = 0.0
# Convolutions may sum in another order in another batch size; the noise is the same bit for bit.
ACROSS_BATCHES = 1e-3
# Stored outputs of another implementation, relative to the largest value: tens of float32 ops a step.
GOLDEN_RELATIVE = 1e-5
# A float32 network against a float32 network with its sums arranged otherwise, outputs of order 1.
NETWORK = 1e-5
# Weights after 20 steps of Adam at 1e-3, gradients summed by one process or by two: the sums differ in
# float32's last bits, and Adam's division by sqrt(v) passes that on where a gradient is near 0. A wrong share
# of the batch moves weights by over 1e-3.
TWO_PROCESSES = 2e-5
# A drop-in against the library that it replaces, float32, over a whole chain in [-1, 1]; relative to the
# largest value where a chain of an untrained network is not clipped. The goal set for drop-ins.
DROP_IN = 1e-4
# ONNX Runtime against PyTorch, and another batch size in either: the goal set for one seed on every backend.
ACROSS_BACKENDS = 1e-3
# One-file sampler against the step loop on the same machine: the same network and float32 formulas, the noise
# by float32 operators or by float64 NumPy.
ACROSS_ONNX_LOOPS = 1e-4
# ONNX Runtime against PyTorch over chains of a few steps, by which rounding is passed on less often; relative
# to the largest value where an unclipped chain leaves [-1, 1].
OF_FEW_STEPS = 1e-4
# A captured loop replays the eager step's kernels; what is left is a library's choice of another one.
SAME_KERNELS = 1e-5
# One evaluation in another precision than float32 with TF32 off, relative to the largest value: twice the
# largest difference of six small networks and of the CIFAR-10 network, TF32 emulated with its inputs rounded
# to 10 bits of mantissa, or cut off there (benchmarks/results/precision_mnist.json). Chains are held to
# nothing in these precisions: random weights take them 1e-1 and more apart, and of a trained network's images
# a few become other ones. So checks of exactness run with TF32 off.
TF32_PASS = 5e-3
BF16_PASS = 3e-2
FP16_PASS = 4e-3
# A product taken apart into two, and convolutions as products, in float64: the same sums in another order.
EXACT_SPLIT = 1e-12
# Actions of 100 steps by our network of actions in a policy, against the policy's own loop and network in
# float32: actions are clipped to [-1, 1] at every step, and the sums are of a few thousand numbers.
ACTIONS = 1e-5
# Of int8, by the root of the mean square and relative to it: twice the largest error of the small networks'
# outputs over the states of a calibration, 0.027.
INT8_PASS = 0.055
