// A plugin: refuses, before anything is packed, a deploy that would do something other than it seems to.

module.exports = class Checks {
  constructor(serverless, options) {
    const refuse = (why) => {
      throw new serverless.classes.Error(why);
    };
    this.hooks = {
      'before:package:initialize': () => {
        const { supabaseUrl, container, llmProvider, llmModel } = serverless.service.custom.given;
        if (llmProvider && !['demo', 'openai'].includes(llmProvider))
          refuse(`llmProvider=${llmProvider}: must be demo or openai`);
        if (llmProvider === 'openai' && !llmModel) refuse('llmModel is needed with llmProvider=openai: gpt-4o-mini, say');
        if (serverless.service.provider.stage === 'local') return;
        if (!supabaseUrl) refuse('supabaseUrl is needed: --param="supabaseUrl=https://<project ref>.supabase.co"');
        if (!container)
          refuse('container is needed: --param="container=off", registry or on. What it leaves out, a deploy removes');
      },
      'before:deploy:function:initialize': () =>
        refuse('deploy function would write the names of the secrets where their values belong: use deploy'),
    };
  }
};
