"""The networks on which sparse training is usually shown, as ordinary PyTorch modules.

Every convolution stands in an `nn.Sequential` right before its batch normalisation, so that `nas.param_groups` finds
the unit: a filter with its shift, or with its bias where there is no normalisation. What the networks return are
logits, which no activation touches. Pictures are expected normalised: mean and standard deviation belong to the data.

``activation`` makes the activation modules. With `RightReLU` a unit that is exactly zero still gets a gradient, and
can wake; the function is that of `nn.ReLU`. Weights start with He's variance 2 / fan_in, biases at 0.
"""

from collections.abc import Callable

from torch import Tensor, nn

from nas.models.dag import right_relu

Activation = Callable[[], nn.Module]
VGG_WIDTHS = 64, 128, 256, 512, 512
VGG_STAGES = {13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3)}  # convolutions of each width


class RightReLU(nn.Module):
    """`nas.models.right_relu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return right_relu(x)


def mnist_mlp(num_classes: int = 10, *, activation: Activation = nn.ReLU) -> nn.Sequential:
    """The perceptron 784-200-80-10 for pictures (B, 1, 28, 28) (JMLR 23(192), section 4.2)."""
    return _he_start(
        nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(784, 200), activation()),
            *(nn.Linear(200, 80), activation()),
            nn.Linear(80, num_classes),
        )
    )


def fashion_convnet(num_classes: int = 10, *, activation: Activation = nn.ReLU) -> nn.Sequential:
    """Two 5 x 5 convolutions and two linear layers for pictures (B, 1, 28, 28) (JMLR 23(192), section 4.3)."""
    return _he_start(
        nn.Sequential(
            *(nn.Conv2d(1, 64, 5), activation(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 64, 5), activation(), nn.MaxPool2d(2)),
            nn.Flatten(),
            *(nn.Linear(1024, 128), activation()),
            nn.Linear(128, num_classes),
        )
    )


def vgg13(num_classes: int = 10, *, batch_norm: bool = True, activation: Activation = nn.ReLU) -> nn.Sequential:
    """VGG-13 for pictures (B, 3, 32, 32), with a single linear layer at the end (arXiv 1409.1556, configuration B)."""
    return _vgg(13, num_classes, batch_norm, activation)


def vgg16(num_classes: int = 10, *, batch_norm: bool = True, activation: Activation = nn.ReLU) -> nn.Sequential:
    """VGG-16 for pictures (B, 3, 32, 32), with a single linear layer at the end (arXiv 1409.1556, configuration D)."""
    return _vgg(16, num_classes, batch_norm, activation)


def resnet18(num_classes: int = 10, *, activation: Activation = nn.ReLU) -> nn.Sequential:
    """ResNet-18 (arXiv 1512.03385, table 1) for pictures (B, 3, 32, 32): its stem is one 3 x 3 convolution."""
    return _resnet((64, 128, 256, 512), 2, num_classes, activation)


def resnet20(num_classes: int = 10, *, activation: Activation = nn.ReLU) -> nn.Sequential:
    """ResNet-20 for pictures (B, 3, 32, 32) (arXiv 1512.03385, section 4.2), with projections (its option B)."""
    return _resnet((16, 32, 64), 3, num_classes, activation)


def resnet56(num_classes: int = 10, *, activation: Activation = nn.ReLU) -> nn.Sequential:
    """ResNet-56 for pictures (B, 3, 32, 32) (arXiv 1512.03385, section 4.2), with projections (its option B)."""
    return _resnet((16, 32, 64), 9, num_classes, activation)


CLASSICS: dict[str, Callable[..., nn.Sequential]] = {
    make.__name__: make for make in (mnist_mlp, fashion_convnet, vgg13, vgg16, resnet18, resnet20, resnet56)
}


class BasicBlock(nn.Module):
    """y = act( norm(conv(act(norm(conv(x))))) + shortcut(x) ), the shortcut a projection where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, activation: Activation) -> None:
        super().__init__()
        first, second = _conv_norm(channels, width, 3, stride), _conv_norm(width, width, 3)
        self.body = nn.Sequential(*first, activation(), *second)
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(channels, width, 1, stride))
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return y


def _vgg(depth: int, num_classes: int, batch_norm: bool, activation: Activation) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, repeats in zip(VGG_WIDTHS, VGG_STAGES[depth], strict=True):
        for _ in range(repeats):
            layers += [*_conv_norm(channels, width, 3, batch_norm=batch_norm), activation()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return _he_start(nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, num_classes)))


def _resnet(widths: tuple[int, ...], blocks: int, num_classes: int, activation: Activation) -> nn.Sequential:
    """Stages of ``blocks`` blocks each; every stage but the first halves the picture."""
    layers: list[nn.Module] = [*_conv_norm(3, widths[0], 3), activation()]
    channels = widths[0]
    for width in widths:
        for k in range(blocks):
            layers.append(BasicBlock(channels, width, 2 if k == 0 and width != widths[0] else 1, activation))
            channels = width
    return _he_start(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)))


def _conv_norm(
    channels: int, width: int, kernel: int, stride: int = 1, *, batch_norm: bool = True
) -> tuple[nn.Module, ...]:
    """A convolution that keeps the size of the picture (but for its stride), and its batch normalisation."""
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=not batch_norm)
    return (conv, nn.BatchNorm2d(width)) if batch_norm else (conv,)


def _he_start(net: nn.Sequential) -> nn.Sequential:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
