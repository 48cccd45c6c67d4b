"""fastai's XResNet34 on PyTorch."""
