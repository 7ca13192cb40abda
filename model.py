"""The CNN that learns MNIST, built on the engine."""

from engine import Conv2dLayer, LinearLayer, Module, as_value, max_pooling


class CNN(Module):
    """A small LeNet: images x (n, 1, 28, 28), raw or a Value, to the logits of ten classes (n, 10).

        input                             (n, 1, 28, 28)
        conv1, 3x3, padding 1             (n, 4, 28, 28)
        max_pooling, stride 2, and ReLU   (n, 4, 14, 14)
        conv2, 3x3, padding 1             (n, 8, 14, 14)
        max_pooling, stride 2, and ReLU   (n, 8, 7, 7)
        linear, 392 to 10                 (n, 10)

    n may be 0. Raises ValueError for x of another shape.
    """

    def __init__(self):
        self.conv1 = Conv2dLayer(1, 4, 3, padding=1)
        self.conv2 = Conv2dLayer(4, 8, 3, padding=1)
        self.linear = LinearLayer(8 * 7 * 7, 10)

    def forward(self, x):
        x = as_value(x)
        if x.shape[1:] != (1, 28, 28):
            raise ValueError(f"CNN takes images x (n, 1, 28, 28), got shape {x.shape}")
        # relu(max(x)) is max(relu(x)), with the same gradients, for a quarter of ReLU's work.
        x = max_pooling(self.conv1(x), 2).relu()  # (n, 4, 14, 14)
        x = max_pooling(self.conv2(x), 2).relu()  # (n, 8, 7, 7)
        return self.linear(x.reshape(x.shape[0], 8 * 7 * 7))  # (n, 10)
