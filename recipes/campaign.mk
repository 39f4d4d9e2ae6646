# The plan for a better default model, on one GPU and without a network, in parts that go on where they were cut.
#
#   make -j8 campaign               all of it, eight runs at a time: ideas, teachers, student, final, btn, looks
#   make campaign PART=ideas        one part, or several with blanks between
#   make campaign OPTIONS="$(make -s campaign-try)" RUNS=out/campaign SEEDS=0 BTN_SEEDS=1 CHOOSE="--limit 32"
#                                   a try on a CPU, two steps a run
#
# A run is a folder of $(RUNS) with a finished.json at its end. One that was cut goes on from its resume.ckpt, one that is
# finished is not made again. OPTIONS are options of all runs, as name=value, START the model that all begin with.
# The even half of validation chooses and judges runs on the way; what `mien choose --look` says is over both halves.

RUNS ?= runs/campaign
START ?= mobilefacenet_ferplus
SEEDS ?= 0 1
BTN_SEEDS ?= 5
OPTIONS ?= trainer.accelerator=gpu trainer.precision=bf16-mixed faces.in_memory=true
CHOOSE ?=
PARTS := ideas teachers student final btn looks
PART ?= $(PARTS)
TRIED := trainer.accelerator=cpu trainer.precision=32-true trainer.max_steps=2 trainer.val_check_interval=2 \
	trainer.check_val_every_n_epoch=null trainer.limit_val_batches=1 faces.subset=300 faces.aligned=0 cache=false ema=0

.PHONY: campaign campaign-try $(addprefix campaign-,$(PARTS))

campaign: .venv/testing
	+@for part in $(PART); do $(MAKE) --no-print-directory campaign-$$part || exit; done

campaign-try:
	@echo $(TRIED)

# $(call train,recipe,options): a run whose folder has the name of the target's
train = .venv/bin/mien train recipes/campaign_$(1).yaml --name $(notdir $(@D)) --out $(@D) \
	--init "{'': $(START)}" --data.path $(DATA) $(2) $(addprefix --,$(OPTIONS))
# $(call runs,name): its finished runs, one a seed
runs = $(foreach seed,$(SEEDS),$(RUNS)/$(1)_$(seed)/finished.json)

# Ideas: four epochs each from the same start, beside the plain recipe. A name, and the options that are the idea.
plain :=
flip := --task.flip_consistency 2 --model.init_args.mirror false --faces.batch_size 64
branch := --model.init_args.batch_branch mien.nn.BatchTransformer
adjust := --task.logit_adjustment 0.25
mix := --task.mixup 0.2
cut := --task.cutmix 0.5
hard := --augment.jpeg_p 0.4 --augment.jpeg_quality '[10,70]' --augment.resample_p 0.3
IDEAS := plain flip branch adjust mix cut hard

campaign-ideas: $(foreach idea,$(IDEAS),$(call runs,$(idea)))

define idea
$(RUNS)/$(1)_%/finished.json:
	$$(call train,idea,--seed $$* $$($(1)))
endef
$(foreach each,$(IDEAS),$(eval $(call idea,$(each))))

# Teachers: three networks at full length, two seeds of a recipe and one twice as wide.
TEACHERS := long_0 long_1 wide_0
campaign-teachers: $(foreach name,$(TEACHERS),$(RUNS)/$(name)/finished.json)

$(RUNS)/long_%/finished.json:
	$(call train,long,--seed 1$*)

$(RUNS)/wide_%/finished.json:
	$(call train,long,--seed 2$* --model.init_args.width 2)

# A student learns what the teachers answer in the mean; last, one on all faces, whose file says that it is not measured.
comma := ,
blank := $(subst ,, )
TAUGHT = --task.teach 0.7 --teachers \
	"[$(subst $(blank),$(comma),$(foreach name,$(TEACHERS),$(RUNS)/$(name)/best.safetensors))]"

campaign-student: $(call runs,student)
campaign-final: $(RUNS)/final_0/finished.json

$(RUNS)/student_%/finished.json: | campaign-teachers
	$(call train,long,--seed 3$* $(TAUGHT))

$(RUNS)/final_%/finished.json: | campaign-teachers
	$(call train,long,--seed 3$* $(TAUGHT) --faces.train_split train+validation)

# BTN on kept features: POSTER++ (mla=none, bt=false), BTN, and BTN without one of its parts.
campaign-btn: .venv/testing
	.venv/bin/mien ablate recipes/btn_mobile_cached_ferplus.yaml --out $(RUNS)/btn --seeds $(BTN_SEEDS) \
		--vary model.init_args.mla=levels,none --vary model.init_args.bt=true,false --set data.path=$(DATA) \
		--set cache_folder=$(RUNS)/cache $(addprefix --set ,$(filter-out faces.aligned=%,$(OPTIONS)))

# What the even half chooses of each kind of run; the other half judges by `mien choose … --look`, once an idea is final.
campaign-looks:
	for name in $(IDEAS) long wide student; do .venv/bin/mien choose $(RUNS)/$${name}_*/step_*.safetensors \
		--data $(DATA) --half even --out $(RUNS)/answers $(CHOOSE) || exit; done
