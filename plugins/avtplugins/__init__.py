"""The backbones, transformations, data sets and objectives that come with avt: plugins like anyone's."""
