"""What the pages of both estimators say: parameters and attributes that they share."""

from __future__ import annotations

from typing import TypeVar

Kind = TypeVar("Kind", bound=type)

PARAMETERS = """\
    hidden_layer_sizes : int or sequence of int, default (100,)
        Units of each hidden layer.
    activation : str, default "relu"
        Of the hidden layers: "identity", "logistic", "tanh", "relu" as in scikit-learn, or "gelu", "silu", "elu",
        "selu", "leaky_relu", "softplus".
    solver : str, default "adam"
        "adam", "sgd", "lbfgs" (SciPy's, full batches, NumPy arrays) as in scikit-learn, or "adamw", "nadam", "rmsprop",
        "lion", "momentum", "nesterov". "sgd" is with momentum, as `momentum` and `nesterovs_momentum` say.
    alpha : float, default 1e-4
        Penalty of the weights, alpha / 2 * sum of w^2 divided by the rows of a batch (their weights together), as in
        scikit-learn. Of "adamw" and "lion", whose decay is decoupled, the decay itself.
    batch_size : int or "auto", default "auto"
        "auto" is min(200, rows). A single row left over joins the batch before it.
    learning_rate : {"constant", "invscaling", "adaptive"}, default "constant"
        Of solver "sgd" alone. "invscaling": learning_rate_init / (rows seen + 1)^power_t from epoch to epoch;
        "adaptive": divided by 5 where others would stop, down to 1e-6.
    learning_rate_init : float, default 1e-3
        The rate to begin with, of every solver but "lbfgs".
    power_t : float, default 0.5
        See `learning_rate`.
    max_iter : int, default 200
        Epochs, or iterations of "lbfgs".
    shuffle : bool, default True
        Other batches in each epoch.
    random_state : int, RandomState or None, default None
        Of the first weights, the batches, what is held out and what is dropped. The same numbers come out of one seed
        on every backend.
    tol : float, default 1e-4
        Least gain; see `n_iter_no_change`. Of "lbfgs" the gradient at which it ends.
    verbose : bool, default False
        Print a line for each epoch.
    warm_start : bool, default False
        fit goes on from what the last one left.
    momentum : float, default 0.9
        Of solvers "sgd", "momentum" and "nesterov".
    nesterovs_momentum : bool, default True
        Nesterov's momentum for "sgd".
    early_stopping : bool, default False
        Hold rows out, judge the network by them after each epoch, and keep the best one.
    validation_fraction : float, default 0.1
        The part of the rows held out, by class where there are enough of each.
    beta_1, beta_2, epsilon : float, default 0.9, 0.999, 1e-8
        Of "adam" and its kin; beta_2 is the decay of "rmsprop" too. epsilon is beside the corrected root.
    n_iter_no_change : int or inf, default 10
        More epochs than this without a gain of tol, in the loss or with early_stopping in the score, end the training.
    max_fun : int, default 15000
        Evaluations of the loss by "lbfgs", at most.
    norm : {"batch", None}, default "batch"
        Batch normalisation of the hidden layers.
    norm_position : {"pre", "post"}, default "pre"
        Before or after the activation.
    standardize : bool or None, default None
        Features, and the targets of a regression, to mean 0 and variance 1 as the rows of the first fit have them.
        None: where `norm` is "batch". `loss_` and `tol` are then in units of the standardised targets.
    dropout : float, default 0
        Part of the values of each hidden layer that is dropped in training.
    residual : bool, default False
        A skip around each hidden layer that gives as many features as it takes.
    schedule : None, "cosine" or callable, default None
        The rate of each update: "cosine" from learning_rate_init to 0 over max_iter epochs, or a function from the
        number of updates done to a rate (`bnengine.optimizers.warm_up` and others).
    scoring : None, str or callable, default None
        What early_stopping judges by: None for the score of the estimator, "loss" for the loss (negative), or a scorer
        of scikit-learn's.
    n_ens : int, default 1
        Networks trained side by side, each from weights and batches of its own; predictions are their mean.
    backend, device : str or None, default None
        The array library and the device of training and prediction (`bnengine.backend`). None: those of X.
    dtype : {"float32", "float64"} or None, default None
        None: X's where it is one of them, else float64."""

ATTRIBUTES = """\
    loss_, best_loss_ : float
        The loss of the last epoch, and the lowest (None with early_stopping), with the penalty.
    loss_curve_ : list of float
        Of each epoch.
    validation_scores_, validation_loss_curve_ : list of float or None
        Of each epoch, on the rows held out or given.
    best_validation_score_ : float or None
        With early_stopping.
    coefs_, intercepts_ : list of array
        Weights (inputs, outputs) and biases of the Linear layers, of n_ens=1, with normalisation and scales folded in:
        the network as scikit-learn writes it. What `bnengine.fold` cannot fold away, as in a Residual, is not in them.
    n_iter_, t_ : int
        Epochs of the last fit, and rows seen so far.
    n_layers_, n_outputs_ : int
        Layers, inputs and outputs counted too, and units of the last.
    out_activation_ : str
        What predictions are of the outputs.
    n_features_in_, feature_names_in_
        As in every estimator of scikit-learn.
    network_ : Sequential
        The layers.
    members_ : list of Fitted
        Parameters, state and optimiser state of each network: what `bnengine.save` takes."""


def documented(kind: Kind) -> Kind:
    """The class with what both share put into its page."""
    kind.__doc__ = (kind.__doc__ or "").replace("    {parameters}", PARAMETERS).replace("    {attributes}", ATTRIBUTES)
    return kind
